"""Passive installs on sets: what was read from external memory comes in, for what was used least recently."""

from collections.abc import Iterator
from fractions import Fraction

from tests.sim.oracle_case import Item
from tests.sim.oracle_migrations import Move
from tests.sim.oracle_state import State


def installs(state: State, passive: str, n: int, layer: int) -> Iterator[Move]:
    """passive: off, all or alpha."""
    if passive == "off":
        return
    case, k = state.case, state.case.kv_bytes
    whole = case.attn_bytes + k * len(case.reads(n, layer))
    installed = 0
    for item in sorted(state.read_e - state.hbm, reverse=True):
        served = state.w_a[layer] + k * (len(state.read_h) + installed)
        if passive == "alpha" and not Fraction(served, whole) < case.best_share:
            break
        outs: list[Item] = []
        if state.free() <= 0:
            left_alone = state.read_h | state.read_e | state.come
            victims = [(state.used_at[i], i) for i in state.hbm if i not in left_alone]
            if not victims:
                break
            outs = [min(victims)[1]]
        yield outs, [item]
        installed += item in state.hbm
