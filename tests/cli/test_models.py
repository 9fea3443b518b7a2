import json
from typing import Any

import pytest

import penstock.describe
from penstock.cli import main

FACTS: dict[str, Any] = {
    "name": "SmolLM2-135M-Instruct",
    "family": "llama",
    "parameters": 134_515_008,
    "bytes": 269_030_016,
    "layers": 30,
    "pages": 61,
    "page_bytes_max": 56_623_104,
    "kv_bytes_per_token": 23_040,
    "open_kv_bytes_per_row": 0,
    "state_bytes_per_row": 0,
    "core_bytes": 262_144,
    "dtype": {"stored": "bfloat16", "compute": "float32", "kv": "bfloat16"},
    "context": 8192,
    "converted_bytes": 269_030_016,
    "holds": {
        "budget_bytes": {"cpu": 2**30, "disk": 2**35},
        "prompts": 256,
        "prompt_tokens": 512,
        "new_tokens": 128,
        "row_tokens": 640,
        "rows": 64,
        "weights_bytes": {"cpu": 2**27, "disk": 3 * 2**27},
    },
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    def describe(model: str, **flags: Any) -> dict[str, Any]:
        asked.update(flags, model=model)
        return FACTS

    monkeypatch.setattr(penstock.describe, "describe", describe)
    return asked


def test_table(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "demo", "--cpu-memory", "1GiB"]) == 0
    assert asked["model"] == "demo"
    assert asked["cpu_memory"] == "1GiB"
    assert capsys.readouterr().out.splitlines() == [
        "model       SmolLM2-135M-Instruct (llama), context of 8,192 tokens",
        "weights     257 MiB in bfloat16, 135 M parameters, 30 layers",
        "            257 MiB of them converted once, into the page cache on disk",
        "pages       61 of 54 MiB at most, beside a core of 256 KiB",
        "computes in float32",
        "KV          22.5 KiB per token in bfloat16",
        "budget      cpu 1 GiB · disk 32 GiB",
        "holds       weights 25 % in cpu memory, 75 % streamed from disk",
        "rows        64 at once, in a job of 256 prompts of 512 + 128 tokens",
    ]


def test_json(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == FACTS


def test_a_budget_that_is_too_small(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(FACTS, "holds", {"budget_bytes": {"cpu": 2**20}, "refusal": "--cpu-memory is too small."})
    assert main(["models", "demo", "--cpu-memory", "1MiB"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "holds       nothing: --cpu-memory is too small."
