"""What lies in the oracle's HBM, and what the step under way has read and moved."""

from fractions import Fraction
from math import floor

from tests.sim.oracle_case import Case, Item


class Refused(Exception):
    """The weights do not fit HBM."""


class State:
    """HBM as the scenario begins it, and as steps leave it.

    Of the step under way: `read_h` and `read_e` are the items that it reads in HBM and outside, `gone` and `come` those
    that moved out and in, `kept` the slots that moves leave free.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.w_a, self.w_m = self._weights()
        self.weights_held = sum(self.w_a) + sum(self.w_m)
        if self.weights_held > case.capacity:
            raise Refused
        self.slots = (case.capacity - self.weights_held) // case.kv_bytes
        self.hbm: set[Item] = set()
        self.used_at: dict[Item, tuple[int, int]] = {}
        self._deal_prefill()
        self.read_h, self.read_e, self.gone, self.come = (set[Item]() for _ in range(4))
        self.kept = 0

    def _weights(self) -> tuple[list[int], list[int]]:
        case = self.case
        omega = case.best_share if case.start == "ratio" else Fraction(1) if case.omega is None else case.omega
        if case.weight_order == "uniform":
            return [floor(omega * case.attn_bytes)] * case.layers, [floor(omega * case.mlp_bytes)] * case.layers
        left = floor(omega * case.layers * (case.attn_bytes + case.mlp_bytes))
        w_a, w_m = [], []
        for _ in range(case.layers):
            for held, size in ((w_a, case.attn_bytes), (w_m, case.mlp_bytes)):
                held.append(min(size, left))
                left -= held[-1]
        return w_a, w_m

    def _deal_prefill(self) -> None:
        case = self.case
        share = {"hbm": Fraction(1), "ratio": case.best_share, "fraction": case.phi}[case.start]
        assert share is not None
        for t in range(case.prefill):
            for layer in range(case.layers):
                self.used_at[t, layer] = (-1, -1)
                if floor((t + 1) * share) > floor(t * share) and len(self.hbm) < self.slots:
                    self.hbm.add((t, layer))

    def read(self, n: int, layer: int) -> None:
        """Begin a step with its reads, where they lie."""
        read = {(t, layer) for t in self.case.reads(n, layer)}
        self.read_h, self.read_e = read & self.hbm, read - self.hbm
        for item in read:
            self.used_at[item] = (n, layer)
        self.gone, self.come, self.kept = set(), set(), 0

    def move(self, outs: list[Item], ins: list[Item]) -> None:
        self.hbm -= set(outs)
        self.gone |= set(outs)
        self.hbm |= set(ins)
        self.come |= set(ins)

    def write(self, n: int, layer: int, to_hbm: bool) -> None:
        """End a step with its new item."""
        self.kept = 0
        self.used_at[n, layer] = (n, layer)
        if to_hbm:
            self.hbm.add((n, layer))

    def free(self) -> int:
        return self.slots - self.kept - len(self.hbm)

    def occupancy(self) -> int:
        return self.weights_held + self.case.kv_bytes * len(self.hbm)

    def above_threshold(self) -> bool:
        return 100 * self.occupancy() > 99 * self.case.capacity

    def of_layer(self, layer: int) -> list[Item]:
        return sorted(item for item in self.hbm if item[1] == layer)

    def of_token(self, t: int) -> list[Item]:
        return sorted(item for item in self.hbm if item[0] == t)

    def outside(self, t: int, n: int, layer: int) -> list[Item]:
        """The items of token t outside HBM that exist in step (n, layer)."""
        exist = range(self.case.layers if t < n else layer if t == n else 0)
        return [(t, other) for other in exist if (t, other) not in self.hbm]
