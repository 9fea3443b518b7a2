"""Executes sweeps: one pass over all pages, each served to every micro-batch before its slot is freed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from penstock.engine import rotary
from penstock.engine.call import Batch, Call, starts_of
from penstock.engine.kv_batch import KVBatch, Reach
from penstock.engine.model import Model
from penstock.engine.parking import Parking
from penstock.engine.recurrent import RowStates
from penstock.engine.sampler import NOT_FINITE, Draw, sample
from penstock.engine.serving import Serving
from penstock.engine.staging import Item
from penstock.memory.allocator import HeapWatch
from penstock.memory.clock import Clock
from penstock.memory.kv import KVStore
from penstock.memory.pager import Pager
from penstock.plan.policy import Tier
from penstock.sampling import Sampling
from penstock.schedule.scheduler import Scheduler
from penstock.schedule.types import Request, Span, Sweep


@dataclass(slots=True)
class Generation:
    """A request on its way: its tokens so far (prompt first) and how they are drawn.

    finish_reason: None on its way; ``stop`` for an end token or ``watch``, ``length``, or ``error`` if its logits are
    not finite, so that nothing can be drawn. watch: called with each drawn token; true where the row ends there (a stop
    text).
    """

    request: Request
    sampling: Sampling
    tokens: list[int]
    finish_reason: str | None = None
    watch: Callable[[int], bool] | None = None

    @property
    def generated(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[len(self.request.prompt) :]


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What one sweep did.

    drawn: tokens by row. finished: rows that ended. prefill_tokens, decode_tokens: computed. rows: that had a part in
    it. activations: bytes by tier of what calls held between pages, at most.
    """

    drawn: Mapping[int, int]
    finished: tuple[int, ...]
    prefill_tokens: int
    decode_tokens: int
    rows: int
    seconds: float
    activations: Mapping[Tier, int]


class Engine:
    """Steps of generation: ``add`` requests, ``sweep`` until nothing is left, ``abort`` what is not wanted any more.

    observe: called with row, position of the token to be drawn, and its logits (vocabulary,), before it is drawn.
    score: called with row, first position and logits (tokens, vocabulary) of all that is computed, not of what is drawn
    alone, once for each part of a row; which takes memory for the logits of a call's tokens.
    """

    def __init__(
        self,
        model: Model,
        scheduler: Scheduler,
        pager: Pager,
        kv: KVStore,
        clock: Clock,
        reach: Reach | None = None,
        parking: Parking | None = None,
        heap: HeapWatch | None = None,
    ) -> None:
        self.model, self.scheduler, self.clock = model, scheduler, clock
        self.pager, self.kv, self.reach, self.parking = pager, kv, reach or Reach(), parking
        self.heap = heap or HeapWatch(None)
        self.sequences: dict[int, Generation] = {}
        self.states = RowStates()
        self.observe: Callable[[int, int, torch.Tensor], None] | None = None
        self.score: Callable[[int, int, torch.Tensor], None] | None = None
        # pages of a sweep like the last one, by whether the cpu beside a gpu computes layers in it
        self._order: dict[bool, Sequence[int]] = {False: model.first_order, True: ()}
        self._hidden_bytes = int(model.config.hidden_size) * model.binding.compute.itemsize
        pager.expect(model.first_order)

    @property
    def device(self) -> torch.device:
        """Where calls compute."""
        return self.kv.device.torch_device

    @property
    def disk_bytes(self) -> int:
        """Disk space that KV and activations take; it grows to what they need, and goes back with ``close``."""
        return self.kv.disk_bytes + (self.parking.disk_bytes if self.parking is not None else 0)

    def add(self, key: str, prompt: Sequence[int], sampling: Sampling) -> int:
        """Queue a request; returns its row id. Raises UserError where it can never fit."""
        regime = rotary.regime(self.model.config, len(prompt), len(prompt) + sampling.max_tokens)
        request = Request(key, tuple(prompt), sampling.max_tokens, regime)
        row = self.scheduler.add(request)
        self.sequences[row] = Generation(request, sampling, list(prompt))
        return row

    def abort(self, row: int) -> None:
        """Forget a row, whatever it was doing."""
        self.scheduler.abort(row)
        self._forget(row)
        self.sequences.pop(row, None)

    def _forget(self, row: int) -> None:
        """Free what a row keeps beside its blocks."""
        self.states.forget(row)
        self.kv.forget(row)

    @torch.inference_mode()
    def sweep(self) -> SweepReport | None:
        """One pass over all pages; None where there is nothing to do."""
        sweep = self.scheduler.next()
        if sweep is None:
            return None
        started = time.perf_counter()
        for row in sweep.dropped:
            self._forget(row)
        self.kv.move(sweep.moves)
        calls = [self._call(spans) for spans in sweep.micro_batches]
        self._expect_kv(calls)
        drawn: dict[int, int] = {}
        in_place = self.scheduler.policy.in_place(sweep.tokens)
        if self.reach.host is not None:
            self.reach.host.begin(calls, in_place)
        self.pager.expect(self._order[in_place])
        try:
            self._order[in_place] = self._serving(lambda call: self._draw(call, drawn)).serve(calls, in_place)
        finally:  # what is at work beside must not outlive the blocks that it reads
            self.reach.settle()
        failed = {row for row, token in drawn.items() if token == NOT_FINITE}
        for row in failed:
            del drawn[row]
        ended = {row for row, token in drawn.items() if self._take(row, token)}
        finished = self.scheduler.done(sweep, ended | failed)
        for row in finished:
            self._forget(row)
            self.sequences[row].finish_reason = "error" if row in failed else "stop" if row in ended else "length"
        self._watch_switch(drawn)
        return self._report(sweep, drawn, finished, time.perf_counter() - started)

    def _serving(self, ended: Callable[[Call], None]) -> Serving:
        return Serving(self.pager, self.model.binding, self.clock, self.parking, self.heap, ended)

    def _call(self, spans: Sequence[Span]) -> Call:
        return Call(self._batch(spans), self.model.forward, self.model.widening, self.reach.host)

    def _batch(self, spans: Sequence[Span]) -> Batch:
        """The flat input of a micro-batch."""
        ids = [token for s in spans for token in self.sequences[s.row].tokens[s.first : s.first + s.count]]
        positions = torch.cat([torch.arange(s.first, s.first + s.count) for s in spans])
        starts = starts_of(spans)
        wanted = list(range(len(ids))) if self.score is not None else _lasts(spans)
        rows = [self.scheduler.row(s.row) for s in spans]
        return Batch(
            spans=tuple(spans),
            lengths=tuple(len(self.sequences[s.row].tokens) for s in spans),
            ids=torch.tensor([ids], dtype=torch.long, device=self.device),
            positions=positions[None].to(self.device),
            wanted=torch.tensor(wanted, dtype=torch.long, device=self.device),
            kv=KVBatch(self.kv, spans, starts, rows, self.reach),
            states=self.states,
        )

    def _expect_kv(self, calls: Sequence[Call]) -> None:
        """Tell the stager in which order this sweep's attention will ask for blocks from slower tiers."""
        if self.reach.stager is None:
            return
        layers = sorted(layer for group in self.kv.groups for layer in group.layers)
        order: list[Item] = []
        for layer in layers:
            for call in calls:
                order += [(layer, portion) for portion in call.batch.kv.away(layer) if portion.blocks is not None]
        self.reach.stager.begin(order)

    def _draw(self, call: Call, drawn: dict[int, int]) -> None:
        """Sample the tokens of a call that has ended and let its logits go."""
        logits, call.logits = call.logits, None
        spans = call.batch.spans
        rows = [span.row for span in spans if span.samples]
        if self.score is not None and logits is not None:
            for start, span in zip(starts_of(spans), spans, strict=True):
                self.score(span.row, span.first, logits[start : start + span.count])
            logits = logits[_lasts(spans)]
        if logits is None or not rows:
            return
        if self.observe is not None:
            for row, its_logits in zip(rows, logits, strict=True):
                self.observe(row, len(self.sequences[row].tokens), its_logits)
        draws = [Draw(s.sampling, s.request.key, len(s.tokens)) for s in (self.sequences[row] for row in rows)]
        drawn.update(zip(rows, sample(logits, draws).tolist(), strict=True))

    def _take(self, row: int, token: int) -> bool:
        """Append a drawn token; whether it ends the row."""
        sequence = self.sequences[row]
        sequence.tokens.append(token)
        met = sequence.watch is not None and sequence.watch(token)
        return met or token in sequence.sampling.stop_ids

    def _watch_switch(self, drawn: Mapping[int, int]) -> None:
        """Rows that cross a longrope switch start again: their earlier keys were turned by other frequencies."""
        switch = self.model.longrope_switch
        if switch is None:
            return
        for row in drawn:
            sequence = self.sequences[row]
            if len(sequence.tokens) == switch + 1 and sequence.finish_reason is None:
                self.scheduler.recompute(row)

    def _report(self, sweep: Sweep, drawn: Mapping[int, int], finished: Sequence[int], seconds: float) -> SweepReport:
        spans = [span for batch in sweep.micro_batches for span in batch]
        prompts = {s.row: len(self.sequences[s.row].request.prompt) for s in spans}
        prefill = sum(s.count for s in spans if s.first < prompts[s.row])
        decode = sum(s.count for s in spans) - prefill
        activations: Mapping[Tier, int] = {self.kv.device.compute_tier: (prefill + decode) * self._hidden_bytes}
        if self.parking is not None:
            activations = self.parking.peak
        return SweepReport(drawn, tuple(finished), prefill, decode, len(prompts), seconds, activations)

    def close(self) -> None:
        """Give back threads, files and memory."""
        self.reach.close()
        self.pager.close()
        self.kv.close()
        if self.parking is not None:
            self.parking.close()


def _lasts(spans: Sequence[Span]) -> list[int]:
    """Flat positions of the last tokens of spans that a token is drawn for."""
    return [start + s.count - 1 for start, s in zip(starts_of(spans), spans, strict=True) if s.samples]
