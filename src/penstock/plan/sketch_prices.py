"""Sweeps of which only sums are known: which of them cost alike, and what that is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from penstock.plan.cost import Priced
from penstock.plan.load import Load, Spans
from penstock.plan.plan import Prediction
from penstock.plan.split_cost import Cost
from penstock.plan.tally import Tally

Alike = tuple[int, ...]  # calls, and in steps rows that decode, their mean keys, spans, tokens and past of prompts
_FINE, _LOOSE = math.log(1.1), math.log(1.3)  # what prices hardly bend with may differ more


@dataclass(slots=True)
class _Sums:
    """Of sweeps alike: how many, the rows that decode and the keys these attend to, and of prompts the spans, their
    first positions, their tokens and those that end their prompts."""

    calls: int
    sweeps: int = 0
    decoding: int = 0
    keys: int = 0
    spans: int = 0
    first: int = 0
    tokens: int = 0
    ended: int = 0

    def mean(self, cut: bool) -> tuple[Load, ...]:
        """Micro-batches of the mean sweep: those of rows that decode and those of prompts apart, where there are
        several. cut: prompts are, where a micro-batch ends."""
        decoding, tokens = self.decoding / self.sweeps, self.tokens / self.sweeps
        decode_calls = self.calls * decoding / (decoding + tokens)  # calls are of one size
        loads = []
        if decoding:
            loads.append(Load((Spans(decoding, self.keys / self.decoding, 1.0),), decoding, decode_calls))
        if tokens:
            spans = self.spans / self.sweeps
            pieces = spans + (math.ceil(self.calls - decode_calls) - 1 if cut else 0)
            # what a span is cut to has the keys of what was before it, too
            first = self.first / self.spans + (tokens / spans - tokens / pieces) / 2
            prompts = (Spans(pieces, first, tokens / pieces),)
            loads.append(Load(prompts, self.ended / self.sweeps, self.calls - decode_calls))
        if self.calls > 1:
            return tuple(loads)
        return (Load(tuple(span for load in loads for span in load.spans), sum(load.samples for load in loads)),)


@dataclass(slots=True)
class Outline:
    """Sweeps of a run in outline. Those that are alike to a tenth are priced once, as their mean.

    cut: prompts may be, at the border of two micro-batches. tokens_in: of the prompts that were computed to their end.
    """

    batch_tokens: int
    cut: bool = True
    tokens_in: int = 0
    tally: Tally[Alike] = field(default_factory=Tally)
    _sums: dict[Alike, _Sums] = field(default_factory=dict)
    _steadiest: _Sums = field(default_factory=lambda: _Sums(0))

    def prediction(self, cost: Cost, hidden_tokens: float) -> Prediction:
        """What the run does, by the prices of its kinds of sweeps; its steady sweep for itself."""

        def prices(kinds: Sequence[Alike]) -> Sequence[Priced]:
            return cost.prices([self._sums[kind].mean(self.cut) for kind in kinds])

        predicted = self.tally.prediction(prices, self.tokens_in, hidden_tokens, whole=False)
        steady = cost.price(self._steadiest.mean(self.cut))
        return replace(predicted, steady=replace(predicted.steady, seconds=steady.seconds, lanes=steady.lanes))

    def mixed(self, decoding: int, keys: int, spans: Sequence[tuple[int, int]], ended: int) -> None:
        """Count a sweep of so many rows that decode, with all keys that they attend to, and spans of prompts.

        spans: (first, count) of each. ended: of them, those that end their prompts.
        """
        first = tokens = 0
        for begun, count in spans:
            first += begun
            tokens += count
        kind, sums = self._alike(decoding, keys, len(spans), first, tokens)
        sums.sweeps += 1
        sums.decoding += decoding
        sums.keys += keys
        sums.spans += len(spans)
        sums.first += first
        sums.tokens += tokens
        sums.ended += ended
        rows = decoding + len(spans)
        self.tally.add(kind, tokens, decoding, decoding + ended, rows, rows)
        self._steady(_Sums(sums.calls, 1, decoding, keys, len(spans), first, tokens, ended))

    def decode(self, decoding: int, keys: int, sweeps: int) -> None:
        """Count sweeps that follow each other in which the same rows decode. keys: of the first of them."""
        while sweeps > 0:
            kind, sums = self._alike(decoding, keys, 0, 0, 0)
            # every row attends to one key more in each sweep
            more = min(sweeps, max(1, math.ceil(math.exp(_LOOSE * kind[2]) - keys / decoding)))
            sums.sweeps += more
            sums.decoding += more * decoding
            sums.keys += more * keys + decoding * (more * (more - 1) // 2)
            self.tally.add(kind, 0, decoding, decoding, decoding, decoding, more)
            keys += more * decoding
            sweeps -= more
            self._steady(_Sums(sums.calls, 1, decoding, keys - decoding))

    def _steady(self, sweep: _Sums) -> None:
        """Keep the last of the sweeps with most spans."""
        if sweep.decoding + sweep.spans >= self._steadiest.decoding + self._steadiest.spans:
            self._steadiest = sweep

    def _alike(self, decoding: int, keys: int, spans: int, first: int, tokens: int) -> tuple[Alike, _Sums]:
        calls = -(-(decoding + tokens) // self.batch_tokens)
        kind = (
            calls,
            _step(decoding, _FINE),
            _step(keys / (decoding or 1), _LOOSE),
            _step(spans, _LOOSE),
            _step(tokens, _FINE),
            _step(first, _LOOSE),
        )
        sums = self._sums.get(kind)
        if sums is None:
            sums = self._sums[kind] = _Sums(calls)
        return kind, sums


def _step(size: float, log_step: float) -> int:
    """A whole number for sizes that are alike to a step."""
    return int(math.log(size) / log_step) + 1 if size >= 1 else 0
