"""``LLM``: a model, its budgets and its placement, ready to generate."""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from penstock.engine.build import Blueprint, assemble, blueprint, cache_pages, check_context
from penstock.engine.engine import Engine, SweepReport
from penstock.errors import UserError
from penstock.machine import limits, probe
from penstock.memory.clock import Clock
from penstock.memory.device import Device, open_device
from penstock.model import precision, source, tokenizer
from penstock.model.page_cache import cache_directory
from penstock.outputs import CompletionOutput, RequestOutput
from penstock.plan.policy import TIERS, Tier
from penstock.plan.rule import Asked, Job, Ledger, Placement, decide
from penstock.plan.shares import parse_shares
from penstock.report import Account
from penstock.sampling import Sampling, SamplingParams, resolve
from penstock.units import parse_bytes

Event = Callable[[Mapping[str, Any]], None]
Prompt = str | Mapping[str, Any]

_MARGIN = 0.04  # of a default budget, left to the system
_UNCOUNTED = 96 << 20  # library scratch (GEMM packing, allocator slack) that no ledger line names


@dataclass(slots=True)
class _Running:
    """An engine with what it was built for."""

    engine: Engine
    placement: Placement
    job: Job
    offload: Path | None


class LLM:
    """A model on memory tiers. Keywords mirror the command line's flags.

    model: directory, GGUF file, hub id or ``demo``. gpu_memory, cpu_memory, disk_memory: budgets ("4GiB" or bytes).
    weights, kv, activations: shares ("cpu=40%,disk=60%"). on_event: called with progress, see the README.
    Mistakes and refusals raise UserError with one line. Use it as a context manager, or call ``close``.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        gpu_memory: str | int | None = None,
        cpu_memory: str | int | None = None,
        disk_memory: str | int | None = None,
        offload_dir: str | os.PathLike[str] | None = None,
        weights: str | Mapping[str, float] | None = None,
        kv: str | Mapping[str, float] | None = None,
        activations: str | Mapping[str, float] | None = None,
        rows: int | None = None,
        sweep_tokens: int | None = None,
        batch_tokens: int | None = None,
        slots: int | None = None,
        batch_size: int | None = None,
        num_batches: int | None = None,
        trust_remote_code: bool = False,
        random_weights: bool = False,
        unchecked: bool = False,
        trace: str | os.PathLike[str] | None = None,
        on_event: Event | None = None,
        page_bytes: int | None = None,
    ) -> None:
        self._asked = Asked(
            weights=None if weights is None else parse_shares(weights, "--weights"),
            kv=None if kv is None else parse_shares(kv, "--kv"),
            activations=None if activations is None else parse_shares(activations, "--activations"),
            rows=_count(rows, "--rows"),
            sweep_tokens=_count(sweep_tokens, "--sweep-tokens"),
            batch_tokens=_count(batch_tokens, "--batch-tokens"),
            slots=_count(slots, "--slots"),
            batch_size=_count(batch_size, "--batch-size"),
            num_batches=_count(num_batches, "--num-batches"),
        )
        asked_bytes = {"gpu": gpu_memory, "cpu": cpu_memory, "disk": disk_memory}
        self._asked_budget = {t: None if b is None else parse_bytes(b, f"--{t}-memory") for t, b in asked_bytes.items()}
        self._event: Event = on_event or (lambda event: None)
        self._trace = trace
        self._running: _Running | None = None
        self._closed = False
        self.last_run: dict[str, Any] = {}
        self._offload_root = _offload_root(offload_dir)
        self._device: Device = open_device(device)
        self._clock = Clock(
            compute_lane="gpu-compute" if self._device.compute_tier == "gpu" else "cpu-compute", tracing=trace is not None
        )
        found = source.resolve(model, trust_remote_code=trust_remote_code, random_weights=random_weights)
        chosen = precision.choose(
            dtype, found.checkpoint_dtype, self._device.torch_device.type, probe.cpu_computes_bfloat16()
        )
        if chosen.note:
            self._event({"kind": "note", "text": chosen.note})
        self.tokenizer = tokenizer.load(found, trust_remote_code=trust_remote_code)
        options = {} if page_bytes is None else {"page_bytes": page_bytes}
        self._plan: Blueprint = blueprint(
            found, chosen, trust_remote_code=trust_remote_code, one_group=self._device.compute_tier == "gpu", **options
        )
        said = found.generation_config.to_dict() if found.generation_config is not None else {}
        self._generation_config = {name: value for name, value in said.items() if value is not None}
        self._unchecked = unchecked
        self._requests = 0

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        chat: bool = False,
    ) -> list[RequestOutput]:
        """Generate for every prompt; results in input order.

        prompts: text, or ``{"prompt"}``, ``{"messages"}`` or ``{"prompt_token_ids"}``. chat: wrap plain text in the
        model's chat template where it has one. Raises UserError for what cannot be run.
        """
        if self._closed:
            raise UserError("this LLM is closed: make a new one")
        listed: Sequence[Prompt] = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        settings = [params or SamplingParams()] * len(listed) if not isinstance(params, Sequence) else list(params)
        if len(settings) != len(listed):
            raise UserError(f"{len(listed)} prompts and {len(settings)} sampling parameters: give one for all or one each")
        encoded = [self._encode(prompt, chat, i) for i, prompt in enumerate(listed)]
        samplings = [
            self._limited(resolve(s, self._generation_config), ids) for s, ids in zip(settings, encoded, strict=True)
        ]
        if not encoded:
            return []
        running = self._prepared(_job(encoded, samplings))
        return _Run(self, running, listed, encoded, samplings).outputs()

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        params: SamplingParams | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several."""
        several = [messages] if messages and isinstance(messages[0], Mapping) else messages
        return self.generate([{"messages": conversation} for conversation in several], params)

    def close(self) -> None:
        """Give back memory, threads and files; write the trace where one was asked for. Can be called twice."""
        if self._closed:
            return
        self._closed = True
        self._drop_engine()
        self._device.close()
        if self._trace is not None:
            self._clock.write_trace(Path(self._trace))

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _encode(self, prompt: Prompt, chat: bool, index: int) -> list[int]:
        """Token ids of a prompt, checked against the model's context and vocabulary."""
        if isinstance(prompt, str):
            prompt = {"prompt": prompt}
        if "prompt_token_ids" in prompt:
            ids = list(prompt["prompt_token_ids"])
            vocabulary = int(self._plan.config.vocab_size)
            if not ids or not all(isinstance(i, int) and 0 <= i < vocabulary for i in ids):
                raise UserError(f"prompt {index + 1}: prompt_token_ids must be whole numbers from 0 to {vocabulary - 1:,}, at least one")
        elif "messages" in prompt:
            ids = tokenizer.encode_chat(self.tokenizer, prompt["messages"])
        elif chat and tokenizer.has_chat_template(self.tokenizer):
            ids = tokenizer.encode_chat(self.tokenizer, [{"role": "user", "content": prompt["prompt"]}])
        else:
            ids = tokenizer.encode_prompt(self.tokenizer, prompt["prompt"])
        if not ids:
            raise UserError(f"prompt {index + 1} has no tokens")
        check_context(self._plan, len(ids), f"prompt {index + 1}")
        return ids

    def _limited(self, sampling: Sampling, ids: Sequence[int]) -> Sampling:
        """Sampling whose max_tokens stays within the model's context."""
        context = self._plan.context
        if context is None or sampling.max_tokens <= context - len(ids):
            return sampling
        return replace(sampling, max_tokens=context - len(ids))

    def _prepared(self, job: Job) -> _Running:
        """An engine for the job: the one at hand where it is large enough, else a new one."""
        if self._running is not None and _covers(self._running.job, job):
            return self._running
        self._drop_engine()
        budget = self._budget()
        self._plan = cache_pages(self._plan, self._cache_room(), self._progress("preparing pages"))
        hidden = self._hidden_tokens()
        taken: dict[Tier, int] = {"cpu": limits.resident_bytes() + _UNCOUNTED, "disk": self._plan.cached_bytes}
        placement = decide(
            self._plan.footprint(), job, Ledger(budget, taken), self._asked, self._device.compute_tier, hidden
        )
        offload = None
        if placement.kv.get("disk") or (self._asked.activations and self._asked.activations.disk):
            offload = Path(tempfile.mkdtemp(prefix=f"run-{os.getpid()}-", dir=self._offload_root))
        engine = assemble(self._plan, placement, self._device, self._clock, offload, self._progress("reading resident pages"))
        self._running = _Running(engine, placement, job, offload)
        return self._running

    def _drop_engine(self) -> None:
        if self._running is not None:
            self._running.engine.close()
            if self._running.offload is not None:
                shutil.rmtree(self._running.offload, ignore_errors=True)
            self._running = None

    def _budget(self) -> dict[Tier, int]:
        """Budgets in force: what was asked, or what is free less a margin."""
        memory = limits.available_bytes() + limits.resident_bytes()
        default: dict[Tier, int] = {
            "gpu": self._gpu_free(),
            "cpu": int(min(memory, limits.memory_limit_bytes()) * (1 - _MARGIN)),
            "disk": int(limits.free_disk_bytes(self._offload_root) * (1 - _MARGIN)),
        }
        return {tier: asked if (asked := self._asked_budget[tier]) is not None else default[tier] for tier in TIERS}

    def _gpu_free(self) -> int:
        if self._device.torch_device.type == "cuda":
            free, _ = torch.cuda.mem_get_info()
            return int(free * (1 - _MARGIN))
        return (1 << 30) if self._device.compute_tier == "gpu" else 0

    def _cache_room(self) -> int | None:
        return self._asked_budget["disk"]

    def _hidden_tokens(self) -> int:
        """T*: tokens whose compute hides one sweep's page reads, from a probe of a second or two; 0 without streaming."""
        pages = [p for p in self._plan.layout.pages if p.kind != "embedding"]
        total = sum(p.nbytes for p in pages)
        if self._device.compute_tier != "cpu" or total < (1 << 30) or self._asked.sweep_tokens:
            return 0
        extents = [e for p in pages for e in p.extents or ()]
        if not extents:
            return 0
        rate = probe.probe_disk(extents, 0.7)
        flops = probe.probe_gemm(self._plan.precision.compute, 256, 0.7)
        weights = sum(s.nbytes // getattr(torch, s.dtype).itemsize for p in pages for s in p.slices)
        hidden = int(total / rate * flops / (2 * weights))
        text = f"disk {rate / 1e9:.1f} GB/s, products {flops / 1e9:,.0f} GFLOP/s: one sweep's pages hide {hidden:,} tokens"
        self._event({"kind": "note", "text": text})
        return hidden

    def _progress(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self._event({"kind": "load", "what": what, "done": done, "total": total})


class _Run:
    """One call of ``generate``: feeds the engine, watches stop texts, reports, and collects results."""

    def __init__(
        self,
        llm: LLM,
        running: _Running,
        prompts: Sequence[Prompt],
        encoded: Sequence[list[int]],
        samplings: Sequence[Sampling],
    ) -> None:
        self.llm, self.running, self.engine = llm, running, running.engine
        self.prompts, self.encoded, self.samplings = prompts, encoded, samplings
        self.account = Account(llm._clock.read(), sum(map(len, encoded)), len(encoded))
        self.index_of: dict[int, int] = {}
        self.done: dict[int, RequestOutput] = {}
        self.texts: dict[int, tokenizer.Detokenizer] = {}

    def outputs(self) -> list[RequestOutput]:
        """Run to the end; an interruption leaves the engine empty and usable."""
        try:
            for index, (ids, sampling) in enumerate(zip(self.encoded, self.samplings, strict=True)):
                self.index_of[self.engine.add(str(index), ids, sampling)] = index
            for row, index in self.index_of.items():
                self._watch(row, index)
            while (sweep := self.engine.sweep()) is not None:
                self._after(sweep)
        finally:
            for row in self.index_of:
                self.engine.abort(row)
        self.llm.last_run = self._summary()
        return [self.done[index] for index in range(len(self.prompts))]

    def _watch(self, row: int, index: int) -> None:
        """Detokenise as tokens come, where a stop text or a listener needs it."""
        if self.llm.tokenizer is None:
            return
        stop = self.samplings[index].stop
        if not stop and len(self.prompts) > 1:
            return
        text = tokenizer.Detokenizer(self.llm.tokenizer, stop)
        self.texts[row] = text

        def push(token: int) -> bool:
            ended = token in self.samplings[index].stop_ids
            new = "" if ended else text.push([token])
            if new:
                self.llm._event({"kind": "text", "index": index, "text": new})
            return text.stopped is not None

        self.engine.sequences[row].watch = push

    def _after(self, sweep: SweepReport) -> None:
        self.account.add(sweep, self.engine)
        for row in sweep.finished:
            self._finish(row)
        self._tell()

    def _finish(self, row: int) -> None:
        index, sequence = self.index_of[row], self.engine.sequences.pop(row)
        tokens, reason = sequence.generated, sequence.finish_reason or "length"
        shown = tokens[:-1] if reason == "stop" and tokens[-1] in sequence.sampling.stop_ids else tokens
        text = ""
        if row in self.texts:
            rest = self.texts[row].finish()
            if rest:
                self.llm._event({"kind": "text", "index": index, "text": rest})
            text = self.texts.pop(row).text
        elif self.llm.tokenizer is not None:
            text = self.llm.tokenizer.decode(shown, skip_special_tokens=True)
        prompt = self.prompts[index]
        given = prompt if isinstance(prompt, str) else prompt.get("prompt")
        completion = CompletionOutput(0, text, tokens, reason)
        self.done[index] = RequestOutput(str(index), given, list(self.encoded[index]), [completion])

    def _tell(self) -> None:
        """Progress after a sweep."""
        account, clock = self.account, self.llm._clock.summary(self.account.started)
        seconds = clock["seconds"]
        rate = account.tokens_out / seconds if seconds else 0.0
        left = sum(s.max_tokens for s in self.samplings) - account.tokens_out - self._saved()
        waiting = {lane: wait["share"] for lane, wait in clock["waits"].items() if wait["share"] > 0}
        self.llm._event(
            {
                "kind": "sweep",
                "sweeps": account.sweeps,
                "prompts_done": len(self.done),
                "prompts": len(self.prompts),
                "tokens_out": account.tokens_out,
                "tokens_left": left,
                "seconds": seconds,
                "tok_s": rate,
                "rows": self.engine.scheduler.running,
                "memory": {"cpu": [limits.resident_bytes(), self.llm._budget()["cpu"]]},
                "waiting": waiting,
                "eta_s": left / rate if rate else None,
            }
        )

    def _saved(self) -> int:
        """Tokens that finished rows were allowed and did not use."""
        return sum(self.samplings[i].max_tokens - len(out.outputs[0].token_ids) for i, out in self.done.items())

    def _summary(self) -> dict[str, Any]:
        plan, placement = self.llm._plan, self.running.placement
        weights: dict[Tier, int] = dict.fromkeys(TIERS, 0)
        for page, home in zip(plan.layout.pages, placement.homes, strict=True):
            weights[home] += page.nbytes
        weights[self.llm._device.compute_tier] += plan.footprint().core
        disk = plan.cached_bytes + self.account.kv_peak["disk"] + self.account.activations_peak["disk"]
        ledger = {"peak": {"gpu": 0, "disk": disk}, "budget": self.llm._budget()}
        return self.account.summary(self.llm._clock, placement, weights, ledger)


def _job(encoded: Sequence[list[int]], samplings: Sequence[Sampling]) -> Job:
    totals = [len(ids) + s.max_tokens for ids, s in zip(encoded, samplings, strict=True)]
    return Job(len(encoded), -(-sum(totals) // len(totals)), max(totals), max(map(len, encoded)))


def _covers(built: Job, job: Job) -> bool:
    """Whether an engine built for one job serves another as well as its own would."""
    return (
        built.prompts >= job.prompts
        and built.longest_tokens >= job.longest_tokens
        and built.mean_tokens >= job.mean_tokens
        and built.longest_prompt >= job.longest_prompt
    )


def _count(value: int | None, flag: str) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UserError(f"{flag} {value}: a whole number of at least 1")
    return value


def _offload_root(asked: str | os.PathLike[str] | None) -> Path:
    """Where spilled KV and activations go; what dead processes left there is removed. UserError where it is not writable."""
    root = Path(asked) if asked is not None else cache_directory() / "offload"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--offload-dir {root} cannot be made: {error.strerror}") from error
    if not os.access(root, os.W_OK):
        raise UserError(f"--offload-dir {root} is not writable")
    for left in root.glob("run-*"):
        pid = left.name.split("-")[1]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    return root


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


