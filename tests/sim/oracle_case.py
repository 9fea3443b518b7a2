"""What is given to the oracle: a scenario and its skip sets. docs/policies.md has the words."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import floor

Item = tuple[int, int]  # token, layer


@dataclass(frozen=True)
class Case:
    """A scenario in whole bytes, bytes per second and seconds; `skipped[i][l]` is S(prefill + i, l)."""

    skipped: Sequence[Sequence[frozenset[int]]]
    layers: int
    prefill: int
    attn_bytes: int
    mlp_bytes: int
    kv_bytes: int
    capacity: int
    b_h: int
    b_r: int
    b_w: int
    b_int: int
    duplex: str = "full"
    mode: str = "exclusive"
    passive: str = "off"
    start: str = "hbm"
    omega: Fraction | None = None
    phi: Fraction | None = None
    weight_order: str = "uniform"
    compute_s: float = 0.0
    fixed_s: float = 0.0

    @property
    def inclusive(self) -> bool:
        return self.mode == "inclusive"

    @property
    def last(self) -> int:
        return self.prefill + len(self.skipped) - 1

    @property
    def best_share(self) -> Fraction:
        return Fraction(self.b_h, self.b_h + min(self.b_r, self.b_int))

    def skips(self, n: int, layer: int) -> frozenset[int]:
        return self.skipped[n - self.prefill][layer]

    @cached_property
    def all_reads(self) -> list[list[frozenset[int]]]:
        return [
            [frozenset(range(self.prefill + i)) - skipped for skipped in of_layers]
            for i, of_layers in enumerate(self.skipped)
        ]

    def reads(self, n: int, layer: int) -> frozenset[int]:
        return self.all_reads[n - self.prefill][layer]

    def ahead(self, n: int, window: int) -> range:
        return range(n + 1, min(n + window, self.last) + 1)

    def back(self, n: int, window: int) -> range:
        return range(max(n - window + 1, self.prefill), n + 1)


def half_up(x: Fraction) -> int:
    return floor(x + Fraction(1, 2))
