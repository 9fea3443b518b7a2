"""What is simulated: a model's bytes on two memories, from a start, for so many tokens."""

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from math import isfinite

from penstock.errors import UserError
from penstock.sim.exact import MOST, check_whole
from penstock.sim.memories import Memories

MOST_ITEMS = 2**31  # a byte is held for each


class Mode(StrEnum):
    """Whether an item has one copy, or external memory always keeps one too."""

    EXCLUSIVE = "exclusive"
    INCLUSIVE = "inclusive"


class Passive(StrEnum):
    """Whether what was just read from external memory stays in HBM."""

    OFF = "off"
    ALL = "all"
    ALPHA = "alpha"


class WeightOrder(StrEnum):
    """How the share of weights in HBM is dealt over the layers."""

    UNIFORM = "uniform"
    BY_LAYER = "by-layer"


class Start(StrEnum):
    """The rule that fills HBM before the first decode step."""

    HBM = "hbm"
    RATIO = "ratio"
    FRACTION = "fraction"


@dataclass(frozen=True)
class Initial:
    """A start: `omega` is the share of weights in HBM, `phi` of prefill KV; None where the rule gives it."""

    start: Start = Start.HBM
    omega: Fraction | None = None
    phi: Fraction | None = None
    weight_order: WeightOrder = WeightOrder.UNIFORM


@dataclass(frozen=True)
class Scenario:
    """One run's givens, in whole bytes; docs/policies.md has the meaning of each word.

    `attn_bytes` and `mlp_bytes` are what each layer's two sublayers read; `weight_capacity_bytes` is what the weights
    take of HBM where that differs from what is read of them (None: the same bytes). Times are in seconds.
    Raises UserError for numbers that cannot be, or are too large to be counted exactly.
    """

    name: str
    memories: Memories
    layers: int
    attn_bytes: int
    mlp_bytes: int
    kv_bytes: int
    prefill_tokens: int
    decode_tokens: int
    initial: Initial = Initial()
    mode: Mode = Mode.EXCLUSIVE
    passive: Passive = Passive.OFF
    compute_s: float = 0.0
    fixed_s: float = 0.0
    weight_capacity_bytes: int | None = None

    def __post_init__(self) -> None:
        check_whole(self, 1, "layers", "kv_bytes", "decode_tokens")
        check_whole(self, 0, "attn_bytes", "mlp_bytes", "prefill_tokens")
        if self.weight_capacity_bytes is not None:
            check_whole(self, 0, "weight_capacity_bytes")
        for name, seconds in (("compute_s", self.compute_s), ("fixed_s", self.fixed_s)):
            if not isfinite(seconds) or seconds < 0:
                raise UserError(f"{name} is {seconds}: give zero or more seconds")
        items = self.layers * (self.prefill_tokens + self.decode_tokens)
        if items > MOST_ITEMS:
            raise UserError(f"KV comes to {items:,} items; at most {MOST_ITEMS:,} are simulated: shorten the lengths")
        most = self.weights_bytes + 2 * self.kv_bytes * (items + self.layers)  # read and moved by a token step
        if most >= MOST:
            raise UserError(f"a step may move {most:.3g} bytes; up to {MOST:.3g} are exact: scale the sizes down")

    @property
    def weights_bytes(self) -> int:
        """All weights that a decode step reads."""
        return self.layers * (self.attn_bytes + self.mlp_bytes)

    @property
    def prefill_kv_bytes(self) -> int:
        """The KV that lies somewhere before the first decode step."""
        return self.prefill_tokens * self.layers * self.kv_bytes
