"""How long a sweep takes whose lanes overlap, from what each kind of page and of joint takes of every lane."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from penstock.plan.pipeline import pipelined
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
        self._memo: dict[tuple[int, ...], float] = {}

    def seconds(
        self, pages: Sequence[Busy], portions: Sequence[Busy], page_sums: Busy, joint_sums: Busy, fixed: float
    ) -> float:
        """Seconds of a sweep: what its pages and the portions carried beside them take by kind, and in all.

        How much longer than its busiest lane it takes depends on how lanes compare, not on how long they are. So that
        is reckoned once for all sweeps that are alike to a fortieth of their busiest lane. fixed: seconds that follow
        the last page.
        """
        sums = [a + b for a, b in zip(page_sums, joint_sums, strict=True)]
        longest = max(sums[0] + fixed, *sums[1:])
        steps = tuple(round(_STEPS * amount / longest) for amount in (*sums, fixed))
        parts = tuple(round(_STEPS * part / of) if of else 0 for part, of in zip(joint_sums, sums, strict=True))
        found = self._memo.get((*steps, *parts))
        if found is None:
            found = self._memo[*steps, *parts] = self._stretch(pages, portions, steps, parts)
        return found * longest

    def _stretch(
        self, pages: Sequence[Busy], portions: Sequence[Busy], steps: Sequence[int], parts: Sequence[int]
    ) -> float:
        """How long a sweep takes whose busiest lane takes 1, and whose lanes have just the sums that the steps stand
        for: whoever asks first, the answer is the same."""
        in_pages = [step * (_STEPS - part) / _STEPS**2 for step, part in zip(steps, parts, strict=False)]
        in_joints = [step * part / _STEPS**2 for step, part in zip(steps, parts, strict=False)]
        pages = _summing_to(in_pages, pages, self._placed_number)
        portions = _summing_to(in_joints, portions, self._joint_number)
        order = [
            (*pages[placed], 0.0, 0.0, streams) for placed, streams in zip(self._placed_of, self._streams, strict=True)
        ]
        for at, joint in self._joint_of.items():
            compute, read, upload, _, _, streams = order[at]
            more, portion_read, portion_upload = portions[joint]
            order[at] = (compute + more, read, upload, portion_read, portion_upload, streams)
        return max(1.0, pipelined(order, self._slots, steps[-1] / _STEPS, self._jitter))


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
