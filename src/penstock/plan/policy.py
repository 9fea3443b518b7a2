"""The decision that a run executes: where bytes live and how the work is cut. No torch, no engine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Tier = Literal["gpu", "cpu", "disk"]
TIERS: tuple[Tier, ...] = ("gpu", "cpu", "disk")
Admission = Literal["continuous", "static"]


@dataclass(frozen=True, slots=True)
class Shares:
    """What part of some bytes rests on each tier; the three fractions sum to 1."""

    gpu: float = 0.0
    cpu: float = 0.0
    disk: float = 0.0

    def of(self, tier: Tier) -> float:
        """The fraction on one tier."""
        return {"gpu": self.gpu, "cpu": self.cpu, "disk": self.disk}[tier]

    @classmethod
    def from_mapping(cls, fractions: Mapping[Tier, float]) -> "Shares":
        """Shares from tier names to fractions; absent tiers hold nothing."""
        return cls(**{tier: fractions.get(tier, 0.0) for tier in TIERS})


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything about a run that is fixed before its first sweep.

    rows: rows in flight at most. sweep_tokens: tokens of one sweep at most (prefill chunks fill up decode sweeps to
    it). batch_tokens: tokens of one forward call at most. slots: page slots in the streaming ring; 1 means load, then
    compute. admission: ``continuous`` replaces finished rows at once; ``static`` is FlexGen's form: batch_size ·
    num_batches rows enter together in num_batches micro-batches, all prefill, then decode until the last ends, then the
    next group. attention: the tier that attends to KV, None where it is the compute tier. cpu_layers: the first so many
    decoder layers rest on the cpu beside a gpu, with all KV, and sweeps of at most ``cpu_tokens`` compute them there,
    as do those of a token for each row; larger ones stream them to the gpu. weight_bits, lm_head_bits, kv_bits: of what
    is stored and moved, None as the checkpoint and the run's dtype have them.
    """

    weights: Shares
    kv: Shares
    activations: Shares
    rows: int
    sweep_tokens: int
    batch_tokens: int
    slots: int = 2
    admission: Admission = "continuous"
    batch_size: int | None = None
    num_batches: int | None = None
    attention: Tier | None = None
    cpu_layers: int = 0
    cpu_tokens: int = 0
    weight_bits: int | None = None
    lm_head_bits: int | None = None
    kv_bits: int | None = None

    def in_place(self, tokens: float) -> bool:
        """Whether a sweep of so many tokens computes the cpu's layers where they rest."""
        return self.cpu_layers > 0 and tokens <= self.most_in_place

    @property
    def most_in_place(self) -> int:
        """The most tokens of a sweep that does."""
        return max(self.cpu_tokens, self.rows)

    def kv_tier(self, compute: Tier) -> Tier:
        """Where new keys are written, and newest blocks stay: with layers on the cpu that is there."""
        return "cpu" if self.cpu_layers else compute
