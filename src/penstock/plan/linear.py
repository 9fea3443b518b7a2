"""The linear program of placement: shares of items on tiers such that the busiest lane is done as soon as it can be.

One small program serves the search for a plan, FlexGen's equations and bare instances. Bytes and seconds in, shares
out; solved by HiGHS (Huangfu and Hall, 2018) through scipy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog

from penstock.plan.policy import TIERS, Tier
from penstock.units import format_bytes

Place = tuple[str, Tier]
SharesOf = Mapping[str, Mapping[Tier, float]]
_Vector = npt.NDArray[np.float64]

# The tightest that HiGHS takes, in units in which the largest item and the longest time are 1.
_TOLERANCE = 1e-10
# What is smaller than this is rounding: a share of an item, and a shortage as a part of all bytes.
_NO_SHARE = 1e-9
_NO_SHORTAGE = 1e-8


@dataclass(frozen=True, slots=True)
class Item:
    """What is placed: weights, KV, activations.

    tiers: where it may rest. buffers: by (tier it rests on, other tier), the bytes that the other tier holds besides
    when the whole item rests there, such as slots that it streams through. in_place: the tier where it lies already,
    so that it takes none of its bytes there.
    """

    nbytes: int
    tiers: tuple[Tier, ...]
    buffers: Mapping[tuple[Tier, Tier], int] = field(default_factory=dict)
    in_place: Tier | None = None


@dataclass(frozen=True, slots=True)
class Lane:
    """Something that is busy for constant_s, and for share_s more per whole item that rests on a tier.

    phase: lanes of one phase overlap; phases follow each other.
    """

    constant_s: float
    share_s: Mapping[Place, float]
    phase: str = "sweep"


@dataclass(frozen=True, slots=True)
class Program:
    """Items, the bytes that tiers hold (absent ones are unlimited), and lanes. times: how often each phase runs.

    ValueError where a phase has no lane, or a lane a phase that never runs.
    """

    items: Mapping[str, Item]
    capacity: Mapping[Tier, int]
    lanes: Mapping[str, Lane]
    times: Mapping[str, float] = field(default_factory=lambda: {"sweep": 1.0})

    def __post_init__(self) -> None:
        phases = {lane.phase for lane in self.lanes.values()}
        if phases != set(self.times):
            raise ValueError(f"lanes have the phases {sorted(phases)}, of which times has {sorted(self.times)}")


@dataclass(frozen=True, slots=True)
class Optimum:
    """The best placement.

    seconds: of the busiest lane (of all phases, each as often as it runs). lanes: busy seconds of each, once.
    byte_duals: seconds that one more byte of a tier saves. lane_duals: seconds that a second more of a lane costs,
    which sum to 1 where there is one phase. Both hold near the optimum only.
    """

    shares: SharesOf
    seconds: float
    lanes: Mapping[str, float]
    byte_duals: Mapping[Tier, float]
    lane_duals: Mapping[str, float]


class Price(NamedTuple):
    """What a given placement costs: seconds and lanes as in an Optimum, and the bytes that tiers are short of."""

    seconds: float
    lanes: Mapping[str, float]
    short: Mapping[Tier, int]


class Infeasible(ValueError):
    """No placement fits. short: the fewest bytes in all that are missing, by tier, the slowest tier where it may be."""

    def __init__(self, short: Mapping[Tier, int]) -> None:
        self.short = dict(short)
        missing = " and ".join(f"{format_bytes(nbytes)} of {tier}" for tier, nbytes in self.short.items())
        super().__init__(f"no placement fits: {missing} memory are missing")


def solve(program: Program, settle_ties: bool = True) -> Optimum:
    """The placement whose busiest lane is done first; Infeasible where none fits.

    Among placements that are equally fast it is one that fills faster tiers first, and among those one whose lanes are
    busy least in all. A caller that wants the seconds alone saves two of three solutions without settle_ties.
    """
    matrix = _Matrix.of(program)
    ties = [matrix.slowness, matrix.traffic] if settle_ties else []
    found = matrix.minimise([matrix.seconds, *ties])
    if not found:
        if missing := matrix.missing():
            raise Infeasible(missing)
        raise ArithmeticError(f"the solver found no placement of {program}, though one fits")
    first, last = found[0], found[-1]
    shares = matrix.shares(last.x)
    seconds, lanes, _ = price(program, shares)
    duals = np.maximum(0.0, -first.ineqlin.marginals)
    byte_s = matrix.unit_s / matrix.unit_bytes
    return Optimum(
        shares=shares,
        seconds=seconds,
        lanes=lanes,
        byte_duals={tier: float(duals[len(lanes) + i]) * byte_s for i, tier in enumerate(matrix.limited)},
        lane_duals={name: float(duals[i]) for i, name in enumerate(lanes)},
    )


def price(program: Program, shares: SharesOf) -> Price:
    """What a given placement costs, whether it fits or not; ValueError where an item has a share of a tier that it may
    not rest on."""
    for name, parts in shares.items():
        for tier, part in parts.items():
            if part and tier not in program.items[name].tiers:
                raise ValueError(f"{name} cannot rest on {tier}: its tiers are {', '.join(program.items[name].tiers)}")
    lanes = {
        name: lane.constant_s
        + sum(seconds * shares[item].get(tier, 0.0) for (item, tier), seconds in lane.share_s.items())
        for name, lane in program.lanes.items()
    }
    seconds = sum(
        times * max((lanes[name] for name, lane in program.lanes.items() if lane.phase == phase), default=0.0)
        for phase, times in program.times.items()
    )
    used = used_bytes(program, shares)
    rounding = _NO_SHORTAGE * sum(item.nbytes for item in program.items.values())
    short = {tier: used[tier] - capacity for tier, capacity in program.capacity.items()}
    return Price(
        seconds, lanes, {tier: round(missing) for tier, missing in short.items() if missing > max(0.5, rounding)}
    )


def used_bytes(program: Program, shares: SharesOf) -> dict[Tier, float]:
    """The bytes that a placement takes on each tier, buffers included."""
    return {
        tier: sum(
            part * _bytes_on(program.items[name], rest, tier)
            for name, parts in shares.items()
            for rest, part in parts.items()
        )
        for tier in TIERS
    }


def _bytes_on(item: Item, rest: Tier, tier: Tier) -> int:
    """The bytes that one tier holds when the whole item rests on another, or on it."""
    return (item.nbytes if rest == tier != item.in_place else 0) + item.buffers.get((rest, tier), 0)


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A program as rows of numbers near 1.

    columns: a share per item and tier, the seconds of each phase, the bytes that each limited tier is short of (fixed
    at 0 but where those are asked for). rows: of lanes, then of limited tiers, all ≤ limits. sums: a row per item, = 1.
    """

    program: Program
    places: tuple[Place, ...]
    phases: tuple[str, ...]
    limited: tuple[Tier, ...]
    unit_s: float
    unit_bytes: float
    rows: _Vector
    limits: _Vector
    sums: _Vector

    @classmethod
    def of(cls, program: Program) -> "_Matrix":
        items, lanes = program.items, program.lanes.values()
        places = tuple((name, tier) for name, item in items.items() for tier in item.tiers)
        phases, limited = tuple(program.times), tuple(program.capacity)
        unit_s = max((s for lane in lanes for s in (lane.constant_s, *lane.share_s.values())), default=0.0) or 1.0
        unit_bytes = float(max((item.nbytes for item in items.values()), default=0) or 1)
        busy = [[lane.share_s.get(place, 0.0) / unit_s for place in places] for lane in lanes]
        held = [[_bytes_on(items[name], rest, tier) / unit_bytes for name, rest in places] for tier in limited]
        ends = [[-float(lane.phase == phase) for phase in phases] for lane in lanes]
        constants = [-lane.constant_s / unit_s for lane in lanes]
        return cls(
            program=program,
            places=places,
            phases=phases,
            limited=limited,
            unit_s=unit_s,
            unit_bytes=unit_bytes,
            rows=np.block(
                [
                    [_rows(busy, len(places)), _rows(ends, len(phases)), np.zeros((len(busy), len(limited)))],
                    [_rows(held, len(places)), np.zeros((len(limited), len(phases))), -np.eye(len(limited))],
                ]
            ),
            limits=np.array(constants + [capacity / unit_bytes for capacity in program.capacity.values()]),
            sums=np.array(
                [[float(owner == name) for owner, _ in places] + [0.0] * (len(phases) + len(limited)) for name in items]
            ),
        )

    @property
    def seconds(self) -> _Vector:
        """The objective of a plan: seconds of all phases."""
        return self._objective(phases=list(self.program.times.values()))

    @property
    def slowness(self) -> _Vector:
        """Bytes by the rank of the tier they rest on. An item without bytes takes no room from others."""
        sizes = {name: item.nbytes / self.unit_bytes or 1.0 for name, item in self.program.items.items()}
        return self._objective(places=[sizes[name] * TIERS.index(tier) for name, tier in self.places])

    @property
    def traffic(self) -> _Vector:
        """Busy seconds of all lanes together."""
        busy = self.rows[: len(self.program.lanes), : len(self.places)]
        return self._objective(places=list(busy.sum(axis=0)))

    def missing(self) -> dict[Tier, int]:
        """The fewest bytes that tiers are short of."""
        fewest = self._objective(short=[1.0] * len(self.limited))
        slowest = self._objective(short=[float(-TIERS.index(tier)) for tier in self.limited])
        found = self.minimise([fewest, slowest], may_be_short=True)
        short = found[-1].x[len(self.places) + len(self.phases) :] * self.unit_bytes if found else []
        return {tier: round(float(b)) for tier, b in zip(self.limited, short, strict=False) if b > 0.5}

    def minimise(self, objectives: Sequence[_Vector], may_be_short: bool = False) -> list[Any]:
        """Solutions of one objective after another, each kept by those that follow; none where nothing fits.

        A later objective only chooses among equals, so it may fail for rounding: what was found before it stands.
        """
        short = (0.0, None if may_be_short else 0.0)
        bounds = [(0.0, 1.0)] * len(self.places) + [(None, None)] * len(self.phases) + [short] * len(self.limited)
        rows, limits = self.rows, self.limits
        found: list[Any] = []
        for objective in objectives:
            result = linprog(
                objective,
                A_ub=rows,
                b_ub=limits,
                A_eq=self.sums,
                b_eq=np.ones(len(self.sums)),
                bounds=bounds,
                method="highs",
                options={"primal_feasibility_tolerance": _TOLERANCE, "dual_feasibility_tolerance": _TOLERANCE},
            )
            if result.status != 0 or result.x is None:
                break
            found.append(result)
            rows, limits = np.vstack([rows, objective]), np.append(limits, float(objective @ result.x))
        return found

    def shares(self, columns: _Vector) -> dict[str, dict[Tier, float]]:
        """Shares of a solution: rounding taken away, and summing to 1."""
        parts: dict[str, dict[Tier, float]] = {name: {} for name in self.program.items}
        for (name, tier), part in zip(self.places, columns, strict=False):
            parts[name][tier] = float(part) if part > _NO_SHARE else 0.0
        return {
            name: {tier: part / sum(tiers.values()) for tier, part in tiers.items()} for name, tiers in parts.items()
        }

    def _objective(
        self,
        places: Sequence[float] | None = None,
        phases: Sequence[float] | None = None,
        short: Sequence[float] | None = None,
    ) -> _Vector:
        parts = zip((places, phases, short), (self.places, self.phases, self.limited), strict=True)
        return np.concatenate(
            [np.zeros(len(columns)) if given is None else np.array(given) for given, columns in parts]
        )


def _rows(rows: Sequence[Sequence[float]], columns: int) -> _Vector:
    """Rows as an array that has its columns even without rows."""
    return np.array(rows, dtype=np.float64).reshape(len(rows), columns)
