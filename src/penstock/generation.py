"""One run of an engine: from a stream of prompts to their answers, with progress on the way."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from penstock.encoding import Item
from penstock.engine.build import Blueprint
from penstock.engine.engine import SweepReport
from penstock.errors import UserError
from penstock.machine import limits
from penstock.model import tokenizer
from penstock.outlook import Outlook
from penstock.outputs import CompletionOutput, RequestOutput
from penstock.plan.policy import TIERS, Tier
from penstock.preparing import Prepared
from penstock.report import Account
from penstock.runtime import Runtime


class NotFinite(UserError):
    """A row that nothing could be drawn of: its logits are NaN or infinite."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a run uses of the LLM that it belongs to."""

    plan: Blueprint
    tokenizer: Any
    runtime: Runtime


class Run:
    """Feeds the engine from ``items``, watches stop texts, tells progress, and yields each answer as its row ends.

    ahead: rows that wait for room at most, or a static group where that is more; None takes all items at once. What
    the engine refuses (a prompt whose KV no memory holds) is yielded as the UserError, and so is what it cannot end
    (NotFinite). ``stop`` ends the run after the sweep that is under way. cut, context_full: answers that ended where
    memory, or the model's context, was full.
    """

    def __init__(
        self,
        around: Surroundings,
        prepared: Prepared,
        items: Iterable[Item],
        outlook: Outlook,
        ahead: int | None = None,
    ) -> None:
        self.around, self.prepared, self.engine = around, prepared, prepared.engine
        self.items, self.outlook, self.ahead = iter(items), outlook, ahead
        policy = prepared.placement.policy
        if ahead is not None and policy.admission == "static":
            self.ahead = max(ahead, policy.rows)  # they enter together
        self.account = Account(around.runtime.clock.read())
        self.alone = outlook.prompts == 1
        self.answered = self.cut = self.context_full = 0
        self._rows: dict[int, Item] = {}
        self._texts: dict[int, tokenizer.Detokenizer] = {}
        self._shared_before = prepared.engine.scheduler.shared_tokens
        self._longest = _longest(around.plan, prepared)
        self._exhausted = self._stopping = self.live = False

    def __iter__(self) -> Iterator[tuple[Item, RequestOutput | UserError]]:
        """Run to the end; an interruption leaves the engine empty and usable."""
        self.live = True
        try:
            while not self._stopping:
                yield from self._fill()
                sweep = self.engine.sweep()
                if sweep is not None:
                    yield from self._after(sweep)
                elif self._exhausted:
                    return
        finally:
            self.live = False
            for row in self._rows:
                self.engine.abort(row)

    def stop(self) -> None:
        """End after the sweep that is under way; rows in flight are given up."""
        self._stopping = True

    def _fill(self) -> Iterator[tuple[Item, UserError]]:
        """Add items until enough of them wait."""
        while not self._exhausted and (self.ahead is None or self.engine.scheduler.waiting < self.ahead):
            item = next(self.items, None)
            if item is None:
                self._exhausted = True
                return
            try:
                self._check_length(item)
                row = self.engine.add(item.key, item.ids, item.sampling)
            except UserError as refusal:
                yield item, refusal
                continue
            self._rows[row] = item
            self._watch(row, item)
            self.account.prompts += 1
            self.account.tokens_in += len(item.ids)
            self.outlook.added(item)

    def _check_length(self, item: Item) -> None:
        """Raise UserError for a row that buffers of the run's own were not made for."""
        if item.tokens > self._longest:
            raise UserError(
                f"{item.tokens:,} tokens are more than this run has buffers for ({self._longest:,}, by the prompts that"
                " it began with): run it by itself"
            )

    def _watch(self, row: int, item: Item) -> None:
        """Detokenise as tokens come, where a stop text or a listener needs it."""
        if self.around.tokenizer is None:
            return
        stop = item.sampling.stop
        if not stop and not self.alone:
            return
        text = tokenizer.Detokenizer(self.around.tokenizer, stop)
        self._texts[row] = text

        def push(token: int) -> bool:
            ended = token in item.sampling.stop_ids
            new = "" if ended else text.push([token])
            if new:
                self.around.runtime.event({"kind": "text", "index": item.index, "text": new})
            return text.stopped is not None

        self.engine.sequences[row].watch = push

    def _after(self, sweep: SweepReport) -> Iterator[tuple[Item, RequestOutput | UserError]]:
        self.account.add(sweep, self.engine)
        self.account.shared_tokens = self.engine.scheduler.shared_tokens - self._shared_before
        self.outlook.swept(sweep)
        ended = [(self._rows[row], self._finish(row)) for row in sweep.finished]
        self.answered += sum(isinstance(output, RequestOutput) for _, output in ended)
        self._tell()
        yield from ended

    def _finish(self, row: int) -> RequestOutput | NotFinite:
        item, sequence = self._rows.pop(row), self.engine.sequences.pop(row)
        tokens, reason = sequence.generated, sequence.finish_reason or "length"
        self.outlook.ended(item, len(tokens))
        if reason == "error":
            self._texts.pop(row, None)
            return self._not_finite(item, len(tokens))
        cut = item.is_cut(reason, len(tokens))
        self.cut += cut
        self.context_full += item.limited and reason == "length" and not cut
        shown = tokens[:-1] if reason == "stop" and tokens[-1] in sequence.sampling.stop_ids else tokens
        text = ""
        if row in self._texts:
            rest = self._texts[row].finish()
            if rest:
                self.around.runtime.event({"kind": "text", "index": item.index, "text": rest})
            text = self._texts.pop(row).text
        elif self.around.tokenizer is not None:
            text = tokenizer.decode(self.around.tokenizer, shown)
        given = item.prompt if isinstance(item.prompt, str) else item.prompt.get("prompt")
        completion = CompletionOutput(0, text, tokens, reason)
        return RequestOutput(str(item.index), given, list(item.ids), [completion])

    def _not_finite(self, item: Item, generated: int) -> NotFinite:
        """What ended a row that no token could be drawn for."""
        precision = self.around.plan.precision
        narrow = "float16" in precision.name.split("/")
        dtype = "float16" if narrow else str(precision.compute).removeprefix("torch.")
        why = "it holds nothing beyond 65,504" if narrow else "its weights may be damaged"
        advice = "give --dtype float32" if narrow else "download the model again"
        said = f"prompt {item.index + 1}: the logits for its token {generated + 1:,} are NaN or infinite in {dtype}"
        return NotFinite(f"{said}: {why}; {advice}")

    def _tell(self) -> None:
        """Progress after a sweep."""
        account, clock = self.account, self.around.runtime.clock.summary(self.account.started)
        seconds = clock["seconds"]
        waiting = {lane: wait["share"] for lane, wait in clock["waits"].items() if wait["share"] > 0}
        predicted = self.prepared.predicted
        self.around.runtime.event(
            self.outlook.told(
                {
                    "kind": "sweep",
                    "sweeps": account.sweeps,
                    "prompts_done": self.answered,
                    "prompts": self.outlook.prompts,
                    "tokens_out": account.tokens_out,
                    "tokens_left": self.outlook.tokens_left,
                    "seconds": seconds,
                    "tok_s": account.tokens_out / seconds if seconds else 0.0,
                    "planned_tok_s": predicted.total_tok_s if predicted is not None else None,
                    "rows": self.engine.scheduler.running,
                    "memory": {tier: [taken, self.prepared.budget[tier]] for tier, taken in self._taken().items()},
                    "waiting": waiting,
                    "eta_s": self.outlook.seconds_left(account, seconds),
                }
            )
        )

    def _taken(self) -> dict[Tier, int]:
        """Bytes of each tier now, at most so far where that is more: of a gpu, and of files, which do not shrink."""
        device, disk = self.around.runtime.device, self.around.plan.cached_bytes + self.engine.disk_bytes
        gpu = device.peak_bytes if device.compute_tier == "gpu" else 0
        return {"gpu": gpu, "cpu": limits.resident_bytes(), "disk": disk}

    def remarks(self) -> Iterator[str]:
        """Which answers are shorter than was asked for, and why."""
        if self.cut:
            cut = f"memory for KV was full before max_tokens of {_answers(self.cut)}"
            yield f"{cut}: give more memory or a smaller max_tokens"
        if self.context_full:
            yield f"the model's context was full before max_tokens of {_answers(self.context_full)}"

    def summary(self) -> dict[str, Any]:
        """``LLM.last_run``."""
        plan, clock, prepared = self.around.plan, self.around.runtime.clock, self.prepared
        weights: dict[Tier, int] = dict.fromkeys(TIERS, 0)
        for page, home in zip(plan.layout.pages, prepared.placement.homes, strict=True):
            weights[home] += page.nbytes
        weights[self.around.runtime.device.compute_tier] += plan.footprint().core
        return self.account.summary(
            clock, prepared.placement, weights, self._taken(), prepared.budget, prepared.predicted
        )


def _answers(count: int) -> str:
    return f"{count:,} answer{'s' * (count != 1)}"


def _longest(plan: Blueprint, prepared: Prepared) -> int:
    """Tokens of the longest row that an engine's buffers hold: for KV on its way, and for prompts that are not cut."""
    model, most = plan.footprint(), sys.maxsize
    if prepared.placement.staging and model.staged_layer:
        most = (prepared.placement.staging // model.staged_layer - 1) * model.block_tokens
    return min(most, prepared.job.longest_tokens) if model.state else most
