"""Sums over the sweeps of a run, which are priced all at once at its end: no schedule depends on a clock."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from penstock.plan.cost import Priced
from penstock.plan.plan import Prediction, SteadySweep

Kind = TypeVar("Kind", bound=Hashable)


@dataclass(slots=True)
class _Alike:
    """Sweeps that cost the same: how many, and the sum of what prompts have of their tokens, as a part of each."""

    sweeps: int = 0
    prefill: float = 0.0


@dataclass(frozen=True, slots=True)
class _Steadiest(Generic[Kind]):
    """Of the sweeps with most spans the last."""

    kind: Kind
    tokens: int
    spans: int


@dataclass(slots=True)
class Tally(Generic[Kind]):
    """What is counted of a run's sweeps. Kind: all that the price of a sweep depends on.

    tokens_out: those that rows generated. rows: summed over sweeps.
    """

    prefill_tokens: int = 0
    decode_tokens: int = 0
    tokens_out: int = 0
    rows: int = 0
    sweeps: int = 0
    _alike: dict[Kind, _Alike] = field(default_factory=dict)
    _steadiest: _Steadiest[Kind] | None = None

    def add(self, kind: Kind, prefill: int, decode: int, samples: int, rows: int, spans: int, sweeps: int = 1) -> None:
        """Count a sweep, or several alike: tokens of prompts and of rows that decode, samples drawn, rows, and their
        spans."""
        alike = self._alike.get(kind)
        if alike is None:
            alike = self._alike[kind] = _Alike()
        alike.sweeps += sweeps
        alike.prefill += sweeps * prefill / (prefill + decode)
        self.prefill_tokens += sweeps * prefill
        self.decode_tokens += sweeps * decode
        self.tokens_out += sweeps * samples
        self.rows += sweeps * rows
        self.sweeps += sweeps
        if self._steadiest is None or spans >= self._steadiest.spans:
            self._steadiest = _Steadiest(kind, prefill + decode, spans)

    def prediction(
        self, prices: Callable[[Sequence[Kind]], Sequence[Priced]], tokens_in: int, hidden_tokens: float, whole: bool
    ) -> Prediction:
        """What the run does, by the prices of its kinds of sweeps. tokens_in, hidden_tokens, whole: as a Prediction has
        them."""
        steadiest = self._steadiest
        assert steadiest is not None  # a job has at least one row
        priced = dict(zip(self._alike, prices(list(self._alike)), strict=True))
        steady = priced[steadiest.kind]
        return Prediction(
            seconds=sum(alike.sweeps * priced[kind].seconds for kind, alike in self._alike.items()),
            prefill_s=sum(alike.prefill * priced[kind].seconds for kind, alike in self._alike.items()),
            decode_s=sum((alike.sweeps - alike.prefill) * priced[kind].seconds for kind, alike in self._alike.items()),
            tokens_in=tokens_in,
            prefill_tokens=self.prefill_tokens,
            decode_tokens=self.decode_tokens,
            tokens_out=self.tokens_out,
            sweeps=self.sweeps,
            rows_mean=self.rows / self.sweeps,
            lanes=self._lanes(priced),
            steady=SteadySweep(steady.seconds, steadiest.tokens, steadiest.spans, steady.lanes),
            hidden_tokens=hidden_tokens,
            whole=whole,
            priced=self.sweeps,
        )

    def _lanes(self, priced: Mapping[Kind, Priced]) -> Mapping[str, float]:
        lanes: dict[str, float] = {}
        for kind, alike in self._alike.items():
            for lane, busy in priced[kind].lanes.items():
                lanes[lane] = lanes.get(lane, 0.0) + alike.sweeps * busy
        return lanes
