"""A plan: the policy of a job, what it takes, how fast it will be and why, as plain values. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.plan.policy import Policy, Tier
from penstock.plan.types import Placement

if TYPE_CHECKING:
    from penstock.plan.baseline import Baseline


@dataclass(frozen=True, slots=True)
class Use:
    """What a plan takes on one tier, in bytes.

    taken: by the interpreter and its libraries, and of a disk by what lies there already. buffers: core, page slots,
    workspace of calls, staging. in_place: of the weights, those that are read from where they lie already and take
    nothing from the budget. short: bytes that the budget is too small by.
    """

    budget: int
    taken: int
    weights: int
    kv: int
    activations: int
    buffers: int
    in_place: int = 0

    @property
    def free(self) -> int:
        """Bytes that stay free."""
        return max(0, self.budget - self.needed)

    @property
    def short(self) -> int:
        """Bytes that are missing."""
        return max(0, self.needed - self.budget)

    @property
    def needed(self) -> int:
        """Bytes in all."""
        return self.taken + self.weights - self.in_place + self.kv + self.activations + self.buffers


@dataclass(frozen=True, slots=True)
class SteadySweep:
    """A sweep of the middle of a job: its length, its tokens and rows, and what each lane is busy with, in seconds."""

    seconds: float
    tokens: int
    rows: int
    lanes: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the engine's own scheduler does with a job on a clock that the cost model drives.

    prefill_s, decode_s: every sweep's seconds, divided by the tokens of each kind in it. prefill_tokens: prompt tokens
    computed, less those taken over from other rows. decode_tokens: those that rows generated and computed. lanes: busy
    seconds by lane (``cpu-compute``, ``disk→cpu``, …). hidden_tokens: T*, the tokens whose compute takes as long as the
    pages of a sweep. whole: whether all sweeps were priced; where not, the job is a longer one of the same kind and the
    middle of it was extended. priced: sweeps that were.
    """

    seconds: float
    prefill_s: float
    decode_s: float
    tokens_in: int
    prefill_tokens: int
    decode_tokens: int
    tokens_out: int
    sweeps: int
    rows_mean: float
    lanes: Mapping[str, float]
    steady: SteadySweep
    hidden_tokens: float
    whole: bool = True
    priced: int = 0

    @property
    def total_tok_s(self) -> float:
        """Generated tokens per second of the whole job."""
        return self.tokens_out / self.seconds if self.seconds else 0.0

    @property
    def prefill_tok_s(self) -> float:
        """Prompt tokens per second of their part of the sweeps."""
        return self.prefill_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tok_s(self) -> float:
        """Generated tokens, after each row's first, per second of their part of the sweeps."""
        return self.decode_tokens / self.decode_s if self.decode_s else 0.0

    @property
    def binding_lane(self) -> str:
        """The lane that is busy longest."""
        return max(self.lanes, key=lambda lane: self.lanes[lane])


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another plan and what it would do. tok_s: None where it does not fit, with why."""

    name: str
    tok_s: float | None
    why: str


@dataclass(frozen=True, slots=True)
class Gain:
    """What a better machine would do: ``change`` in words (``one more GiB of cpu``), tok/s after solving again, and the
    rows in flight then."""

    change: str
    tok_s: float
    rows: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A policy and everything that is said of it.

    memory: by tier. placement: what an engine executes, None where it cannot (``why_not`` says why). duals: tok/s that
    one more byte of a tier, or byte per second of a link, buys by the linear program's dual, near the optimum only.
    gains: solved again. runners_up: other ways, worst last. job: in words. curve: (rows in flight, tok/s predicted) of
    this placement. baseline: what FlexGen's model says, where it was asked for.
    """

    model: str
    machine: str
    job: str
    policy: Policy
    memory: Mapping[Tier, Use]
    predicted: Prediction
    placement: Placement | None
    why_not: str | None = None
    duals: Mapping[str, float] = field(default_factory=dict)
    gains: Sequence[Gain] = ()
    runners_up: Sequence[Alternative] = ()
    notes: Sequence[str] = ()
    curve: Sequence[tuple[int, float]] = ()
    baseline: "Baseline | None" = None

    @property
    def fits(self) -> bool:
        """Whether no tier is short."""
        return all(use.short == 0 for use in self.memory.values())
