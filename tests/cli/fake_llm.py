"""A stand-in for the engine: it remembers what it was asked and answers in capitals."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

RUN: dict[str, Any] = {
    "prompts": 1,
    "tokens_in": 12,
    "tokens_out": 9,
    "seconds": 1.1,
    "total_tok_s": 8.18,
    "prefill_tok_s": 44.7,
    "decode_tok_s": 13.9,
    "rows_mean": 1.0,
    "sweeps": 9,
    "lanes": {"disk→cpu": 0.87, "cpu-compute": 0.3},
    "waits": {"disk→cpu": 0.71},
    "links": {"disk_to_cpu": {"bytes": 9 * 129 * 2**20, "seconds": 0.87}},
    "placed_bytes": {
        "weights": {"gpu": 0, "cpu": 130 * 2**20, "disk": 129 * 2**20},
        "kv": {"gpu": 0, "cpu": 2**20, "disk": 0},
        "activations": {"gpu": 0, "cpu": 0, "disk": 0},
    },
    "peak_bytes": {"gpu": 0, "cpu": 612 * 2**20, "disk": 0},
    "budget_bytes": {"gpu": 0, "cpu": 22 * 2**30, "disk": 2**40},
}


@dataclass
class Engine:
    """What a test sets before and reads after a command."""

    asked: dict[str, Any] = field(default_factory=dict)
    params: Any = None
    requests: list[Any] = field(default_factory=list)
    chat: bool | None = None
    tokenizer: Any = "a tokenizer"
    events: list[dict[str, Any]] = field(default_factory=list)
    failure: BaseException | None = None
    answer: Callable[[Any], str] = lambda request: str(request).upper()


def install(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace ``penstock.llm`` and ``penstock.sampling`` by fakes."""

    class LLM:
        last_run: dict[str, Any]

        def __init__(self, model: str, *, on_event: Callable[[dict[str, Any]], None], **asked: Any) -> None:
            engine.asked = {"model": model, **asked}
            self._on_event, self.tokenizer = on_event, engine.tokenizer

        def __enter__(self) -> "LLM":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def note(self, text: str) -> None:
            self._on_event({"kind": "note", "text": text})

        def generate(self, prompts: list[Any], params: Any, *, chat: bool) -> list[Any]:
            engine.requests, engine.params, engine.chat = prompts, params, chat
            for event in engine.events:
                self._on_event(event)
            if engine.failure is not None:
                raise engine.failure
            self.last_run = {**RUN, "prompts": len(prompts)}
            return [self._output(prompt) for prompt in prompts]

        def _output(self, prompt: Any) -> Any:
            answer = SimpleNamespace(text=engine.answer(prompt), token_ids=[7, 8], finish_reason="stop")
            text = prompt if isinstance(prompt, str) else prompt.get("prompt")
            return SimpleNamespace(prompt=text, prompt_token_ids=[1, 2, 3], outputs=[answer])

    llm, sampling = ModuleType("penstock.llm"), ModuleType("penstock.sampling")
    llm.LLM = LLM  # type: ignore[attr-defined]  # a module made on the spot
    sampling.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "penstock.llm", llm)
    monkeypatch.setitem(sys.modules, "penstock.sampling", sampling)
