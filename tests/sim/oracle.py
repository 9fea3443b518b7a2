"""docs/policies.md played event by event on sets of items: what the fast simulators are compared to.

Written from that page alone. Nothing is shared with penstock.sim and nothing here is fast: an item is a pair
(token, layer), HBM is a set of them, shares are fractions, and every step looks at all there is. This file plays the
steps; those beside it hold what is given, HBM, times and the policies.
"""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

from tests.sim.oracle_belady import Belady
from tests.sim.oracle_case import Case, Item
from tests.sim.oracle_migrations import Migrations, Move
from tests.sim.oracle_passive import installs
from tests.sim.oracle_placements import Placements
from tests.sim.oracle_state import State
from tests.sim.oracle_steps import Account, Bytes, Step, split, time


def play(
    case: Case,
    placement: str,
    migration: str,
    placement_options: dict[str, Any] | None = None,
    migration_options: dict[str, Any] | None = None,
    budget_slack: bool = False,
) -> Account:
    state = State(case)
    placing = getattr(Placements(state, placement_options or {}), placement.replace("-", "_"))
    if migration == "belady":
        rule = Belady(state)
        return _Player(state, rule.in_hbm, rule.moves, "off", budget_slack).play()
    moving = getattr(Migrations(state, migration_options or {}), migration.replace("-", "_"))
    passive = "all" if migration == "lru" else case.passive
    return _Player(state, placing, moving, passive, budget_slack).play()


class _Player:
    def __init__(
        self,
        state: State,
        place: Callable[[int, int], bool],
        moves: Callable[[int, int], Iterable[Move]],
        passive: str,
        slack: bool,
    ) -> None:
        self.state, self.case = state, state.case
        self.place, self.moves, self.passive, self.slack = place, moves, passive, slack
        self.bytes, self.allowed_s = Bytes(), 0.0

    def play(self) -> Account:
        state, account = self.state, Account(peak_bytes=self.state.occupancy())
        for n in range(self.case.prefill, self.case.last + 1):
            for layer in range(self.case.layers):
                account.steps.append(self.attention(n, layer))
                account.steps.append(self.mlp(n, layer))
                assert len(state.hbm) <= state.slots and state.occupancy() <= self.case.capacity
                account.peak_bytes = max(account.peak_bytes, state.occupancy())
        return account

    def mlp(self, n: int, layer: int) -> Step:
        w_m = self.state.w_m[layer]
        counted = Bytes(r_h=w_m, r_e=self.case.mlp_bytes - w_m)
        return Step(n, layer, 1, counted, *time(self.case, counted), len(self.state.hbm))

    def attention(self, n: int, layer: int) -> Step:
        state, case = self.state, self.case
        state.read(n, layer)
        hit, missed, w_a = len(state.read_h), len(state.read_e), state.w_a[layer]
        b = self.bytes = Bytes(r_h=w_a + case.kv_bytes * hit, r_e=case.attn_bytes - w_a + case.kv_bytes * missed)
        if self.slack:
            to_hbm = self.decide(n, layer)
            state.kept = int(to_hbm)
            self.allowed_s = time(case, b)[0]
            self.make_moves(n, layer)
        else:
            self.make_moves(n, layer)
            to_hbm = self.decide(n, layer)
        state.write(n, layer, to_hbm)
        return Step(n, layer, 0, b, *time(case, b), len(state.hbm), hit + missed, hit)

    def decide(self, n: int, layer: int) -> bool:
        """Where the new item goes, and what the reader splits, with their bytes."""
        to_hbm = self.place(n, layer) and self.state.free() > 0
        self.bytes.w_h = self.case.kv_bytes if to_hbm else 0
        self.bytes.w_e = self.case.kv_bytes if self.case.inclusive or not to_hbm else 0
        if self.case.inclusive:
            split(self.case, self.bytes, self.case.kv_bytes * len(self.state.read_h))
        return to_hbm

    def make_moves(self, n: int, layer: int) -> None:
        for outs, ins in chain(self.moves(n, layer), installs(self.state, self.passive, n, layer)):
            self.try_move(outs, ins)

    def try_move(self, outs: list[Item], ins: list[Item]) -> None:
        """Make these moves together, or none where a slot is missing or, with a slack budget, T would grow."""
        state, b, k = self.state, self.bytes, self.case.kv_bytes
        if ins and state.free() + len(outs) < len(ins):
            return
        before = (b.m_hr, b.m_hw, b.m_er, b.m_ew)
        for item in outs:
            assert item in state.hbm
            if not self.case.inclusive:
                b.m_ew += k
                b.m_hr += 0 if item in state.read_h else k
        for item in ins:
            assert item not in state.hbm and item not in state.gone and item in state.used_at
            b.m_hw += k
            b.m_er += 0 if item in state.read_e else k
        if self.slack and time(self.case, b)[0] > self.allowed_s:
            b.m_hr, b.m_hw, b.m_er, b.m_ew = before
        else:
            state.move(outs, ins)
