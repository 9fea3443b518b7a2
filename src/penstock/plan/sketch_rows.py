"""Rows of a job in outline, and the tiers where they rest."""

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.plan.case import Case
from penstock.plan.policy import TIERS
from penstock.plan.types import Placement
from penstock.schedule.demand import Demand


@dataclass(slots=True, eq=False)
class SketchedRow:
    """A row of a job. length: tokens known. left: tokens to generate. shared: leading tokens that another row computed.

    computed: of a prefill. blocks: held. since, ends: the sweeps in which it decodes first, and after the last.
    """

    prompt: int
    length: int
    left: int
    shared: int
    computed: int = 0
    blocks: int = 0
    since: int = -1
    ends: int = -1
    home: "SketchedHome | None" = None


@dataclass(slots=True, eq=False)
class SketchedHome:
    """A tier where rows rest. capacity, used, claimed: blocks, the last what its rows need for the tokens they know.
    due: rows by the sweep, modulo a block, in which they begin a new one."""

    share: float
    capacity: int
    due: list[int]
    used: int = 0
    claimed: int = 0
    rows: int = 0


def homes_of(case: Case, placement: Placement) -> tuple[SketchedHome, Sequence[SketchedHome]]:
    """The tier of new keys, and all tiers where KV rests; windows count as what they take of a row of mean length."""
    block_tokens = case.shape.footprint.block_tokens
    newest = placement.policy.kv_tier(case.compute)
    demand = Demand(case.groups, block_tokens, newest, whole=not case.chunking)
    tokens = max(1, case.job.mean_tokens)
    block_bytes = demand.held(tokens) / demand.blocks(tokens)
    homes = {}
    for tier in TIERS:
        room = int(placement.kv.get(tier, 0) / block_bytes) if block_bytes else 1 << 60
        homes[tier] = SketchedHome(placement.policy.kv.of(tier), max(1, room), [0] * block_tokens)
    return homes[newest], [home for home in homes.values() if home.share > 0]
