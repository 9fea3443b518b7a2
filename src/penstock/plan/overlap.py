"""How long a sweep takes whose lanes overlap, from what each kind of page and of joint takes of every lane."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from penstock.plan.pipeline import Step, pipelined
from penstock.plan.shape import Kinds

Busy = tuple[float, float, float]  # seconds of compute, of reads from disk and of uploads to the gpu
_STEPS = 40  # of a sweep's busiest lane, in which sweeps are compared
_ENOUGH = 400  # pages that show how lanes overlap, of a model that has more


class Overlap:
    """Overlap of one model's pages where they rest.

    placed_of: for each page of the order, which kind it is of those that differ in page or home. streams: whether each
    comes through a slot. jitter: of reads from disk.
    """

    def __init__(
        self, kinds: Kinds, placed_of: Sequence[int], streams: Sequence[bool], slots: int, jitter: float
    ) -> None:
        self._slots, self._jitter = slots, jitter
        shown = kinds.shown(_ENOUGH)
        self._placed_of, self._streams = placed_of[:shown], streams[:shown]
        self._joint_of = {at: joint for at, joint in kinds.joint_of.items() if at < shown}
        self._placed_number, self._joint_number = Counter(self._placed_of), Counter(self._joint_of.values())
        self._memo: dict[Likeness, float] = {}

    def seconds(self, sweeps: Sequence["Sweep"]) -> list[float]:
        """How long sweeps take.

        How much longer than its busiest lane a sweep takes depends on how lanes compare, not on how long they are. So
        that is reckoned once for all sweeps that are alike to a fortieth of their busiest lane, and side by side for
        those that are new.
        """
        likenesses = [sweep.likeness() for sweep in sweeps]
        new: dict[Likeness, Sweep] = {}
        for key, sweep in zip(likenesses, sweeps, strict=True):
            if key not in self._memo:
                new.setdefault(key, sweep)
        if new:
            self._memo.update(zip(new, self._stretches(new), strict=True))
        return [self._memo[key] * sweep.longest for key, sweep in zip(likenesses, sweeps, strict=True)]

    def _stretches(self, sweeps: Mapping["Likeness", "Sweep"]) -> list[float]:
        """How long sweeps take whose busiest lane takes 1, and whose lanes have just the sums that their likeness
        stands for: of those that are alike, it is all the same which is asked."""
        pages, portions = [], []
        for alike, sweep in sweeps.items():
            in_pages = [step * (_STEPS - part) / _STEPS**2 for step, part in zip(alike.sums, alike.parts, strict=True)]
            in_joints = [step * part / _STEPS**2 for step, part in zip(alike.sums, alike.parts, strict=True)]
            pages.append(_summing_to(in_pages, sweep.pages, self._placed_number))
            portions.append(_summing_to(in_joints, sweep.portions, self._joint_number))
        # by lane, kind and sweep
        of_page, of_joint = (
            np.array(kinds).reshape(len(sweeps), -1, 3).transpose(2, 1, 0) for kinds in (pages, portions)
        )
        made: dict[tuple[int, int | None, bool], Step] = {}

        def step(placed: int, joint: int | None, streams: bool) -> Step:
            compute, read, upload = of_page[:, placed]
            if joint is None:
                return Step(compute, read, upload, None, streams)
            more, *carried = of_joint[:, joint]
            portions = (carried[0], carried[1]) if of_joint[1:, joint].any() else None
            return Step(compute + more, read, upload, portions, streams)

        order = []
        for at, (placed, streams) in enumerate(zip(self._placed_of, self._streams, strict=True)):
            key = (placed, self._joint_of.get(at), streams)
            if key not in made:
                made[key] = step(*key)
            order.append(made[key])
        fixed = np.array([alike.fixed / _STEPS for alike in sweeps])
        return [max(1.0, float(s)) for s in pipelined(order, self._slots, fixed, self._jitter)]


class Likeness(NamedTuple):
    """How a sweep's lanes compare, in fortieths: their sums and what follows the last page, to the busiest; and of each
    lane the part that joints have."""

    sums: tuple[int, ...]
    fixed: int
    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep takes of every lane: its pages and the portions carried beside them by kind, and in all.

    fixed: seconds that follow the last page.
    """

    pages: Sequence[Busy]
    portions: Sequence[Busy]
    page_sums: Busy
    joint_sums: Busy
    fixed: float

    @property
    def sums(self) -> Busy:
        """Seconds of each lane."""
        (compute, reads, uploads), joints = self.page_sums, self.joint_sums
        return compute + joints[0], reads + joints[1], uploads + joints[2]

    @property
    def longest(self) -> float:
        """Seconds of the busiest lane."""
        compute, reads, uploads = self.sums
        return max(compute + self.fixed, reads, uploads)

    def likeness(self) -> Likeness:
        """What sweeps have in common that take as much longer than their busiest lane."""
        longest, sums = self.longest, self.sums
        parts = zip(self.joint_sums, sums, strict=True)
        return Likeness(
            tuple(round(_STEPS * amount / longest) for amount in sums),
            round(_STEPS * self.fixed / longest),
            tuple(round(_STEPS * part / of) if of else 0 for part, of in parts),
        )


def sums(kinds: Iterable[Busy], number: Mapping[int, int]) -> Busy:
    """What all take together, of kinds of which there are so many each."""
    compute = reads = uploads = 0.0
    for kind, busy in enumerate(kinds):
        times = number.get(kind, 0)
        compute += times * busy[0]
        reads += times * busy[1]
        uploads += times * busy[2]
    return compute, reads, uploads


def scaled(busy: Busy, factors: Busy) -> Busy:
    """Each lane times its factor."""
    return busy[0] * factors[0], busy[1] * factors[1], busy[2] * factors[2]


def _summing_to(totals: Sequence[float], kinds: Sequence[Busy], number: Mapping[int, int]) -> list[Busy]:
    compute, reads, uploads = (to / of if of else 0.0 for to, of in zip(totals, sums(kinds, number), strict=True))
    return [scaled(busy, (compute, reads, uploads)) for busy in kinds]
