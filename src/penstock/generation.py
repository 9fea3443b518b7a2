"""One call of ``generate``: from requests to results, with progress on the way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.engine.build import Blueprint
from penstock.engine.engine import Engine, SweepReport
from penstock.machine import limits
from penstock.memory.clock import Clock
from penstock.memory.device import Device
from penstock.model import tokenizer
from penstock.outputs import CompletionOutput, RequestOutput
from penstock.plan.policy import TIERS, Tier
from penstock.plan.types import Job, Placement
from penstock.report import Account
from penstock.sampling import Sampling

Event = Callable[[Mapping[str, Any]], None]
Prompt = str | Mapping[str, Any]


@dataclass(slots=True)
class Prepared:
    """An engine with what it was built for: the job, its placement, the budgets in force, its directory on disk."""

    engine: Engine
    placement: Placement
    job: Job
    budget: Mapping[Tier, int]
    offload: Path | None

    def covers(self, job: Job) -> bool:
        """Whether it serves another job as well as an engine of that job's own would."""
        return (
            self.job.prompts >= job.prompts
            and self.job.longest_tokens >= job.longest_tokens
            and self.job.mean_tokens >= job.mean_tokens
            and self.job.longest_prompt >= job.longest_prompt
        )


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a run uses of the LLM that it belongs to."""

    plan: Blueprint
    device: Device
    clock: Clock
    tokenizer: Any
    event: Event


def job_of(encoded: Sequence[Sequence[int]], samplings: Sequence[Sampling]) -> Job:
    """What a list of prompts asks for, every row at its longest."""
    totals = [len(ids) + s.max_tokens for ids, s in zip(encoded, samplings, strict=True)]
    return Job(len(encoded), -(-sum(totals) // len(totals)), max(totals), max(map(len, encoded)))


class Run:
    """Feeds the engine, watches stop texts, tells progress and collects results in input order."""

    def __init__(
        self,
        around: Surroundings,
        prepared: Prepared,
        prompts: Sequence[Prompt],
        encoded: Sequence[list[int]],
        samplings: Sequence[Sampling],
    ) -> None:
        self.around, self.prepared, self.engine = around, prepared, prepared.engine
        self.prompts, self.encoded, self.samplings = prompts, encoded, samplings
        self.account = Account(around.clock.read(), sum(map(len, encoded)), len(encoded))
        self.tokens_left = sum(sampling.max_tokens for sampling in samplings)  # that may still come
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
        return [self.done[index] for index in range(len(self.prompts))]

    def _watch(self, row: int, index: int) -> None:
        """Detokenise as tokens come, where a stop text or a listener needs it."""
        if self.around.tokenizer is None:
            return
        stop = self.samplings[index].stop
        if not stop and len(self.prompts) > 1:
            return
        text = tokenizer.Detokenizer(self.around.tokenizer, stop)
        self.texts[row] = text

        def push(token: int) -> bool:
            ended = token in self.samplings[index].stop_ids
            new = "" if ended else text.push([token])
            if new:
                self.around.event({"kind": "text", "index": index, "text": new})
            return text.stopped is not None

        self.engine.sequences[row].watch = push

    def _after(self, sweep: SweepReport) -> None:
        self.account.add(sweep, self.engine)
        self.tokens_left -= len(sweep.drawn)
        for row in sweep.finished:
            self._finish(row)
        self._tell()

    def _finish(self, row: int) -> None:
        index, sequence = self.index_of[row], self.engine.sequences.pop(row)
        tokens, reason = sequence.generated, sequence.finish_reason or "length"
        self.tokens_left -= sequence.sampling.max_tokens - len(tokens)
        shown = tokens[:-1] if reason == "stop" and tokens[-1] in sequence.sampling.stop_ids else tokens
        text = ""
        if row in self.texts:
            rest = self.texts[row].finish()
            if rest:
                self.around.event({"kind": "text", "index": index, "text": rest})
            text = self.texts.pop(row).text
        elif self.around.tokenizer is not None:
            text = tokenizer.decode(self.around.tokenizer, shown)
        prompt = self.prompts[index]
        given = prompt if isinstance(prompt, str) else prompt.get("prompt")
        completion = CompletionOutput(0, text, tokens, reason)
        self.done[index] = RequestOutput(str(index), given, list(self.encoded[index]), [completion])

    def _tell(self) -> None:
        """Progress after a sweep."""
        account, clock = self.account, self.around.clock.summary(self.account.started)
        seconds = clock["seconds"]
        rate = account.tokens_out / seconds if seconds else 0.0
        waiting = {lane: wait["share"] for lane, wait in clock["waits"].items() if wait["share"] > 0}
        self.around.event(
            {
                "kind": "sweep",
                "sweeps": account.sweeps,
                "prompts_done": len(self.done),
                "prompts": len(self.prompts),
                "tokens_out": account.tokens_out,
                "tokens_left": self.tokens_left,
                "seconds": seconds,
                "tok_s": rate,
                "rows": self.engine.scheduler.running,
                "memory": {"cpu": [limits.resident_bytes(), self.prepared.budget["cpu"]]},
                "waiting": waiting,
                "eta_s": self.tokens_left / rate if rate else None,
            }
        )

    def summary(self) -> dict[str, Any]:
        """``LLM.last_run``."""
        plan, placement = self.around.plan, self.prepared.placement
        weights: dict[Tier, int] = dict.fromkeys(TIERS, 0)
        for page, home in zip(plan.layout.pages, placement.homes, strict=True):
            weights[home] += page.nbytes
        weights[self.around.device.compute_tier] += plan.footprint().core
        disk = plan.cached_bytes + self.account.kv_peak["disk"] + self.account.activations_peak["disk"]
        gpu = self.around.device.peak_bytes if self.around.device.compute_tier == "gpu" else 0
        ledger = {"peak": {"gpu": gpu, "disk": disk}, "budget": self.prepared.budget}
        return self.account.summary(self.around.clock, placement, weights, ledger)
