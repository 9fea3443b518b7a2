"""What a sweep costs: every lane's seconds, page by page.

Physical terms only: bytes over rates, FLOP over rates at their sizes, and fixed costs; docs/cost-model.md has them all.
``plan.visits`` and ``plan.attending`` have what is computed, ``plan.carrying`` what links carry. With one slot, nothing
overlaps; with more, as ``plan.overlap`` says.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

from penstock.machine.machine import Machine
from penstock.plan.attending import Attending
from penstock.plan.carrying import Carrying
from penstock.plan.load import Load
from penstock.plan.overlap import Busy, Overlap, Sweep, scaled, sums
from penstock.plan.policy import TIERS, Policy, Shares, Tier
from penstock.plan.shape import AttentionShape, ModelShape, distinct
from penstock.plan.visits import Visits

_WRITES = ("gpu→cpu", "cpu→disk")


@dataclass(frozen=True, slots=True)
class Priced:
    """Seconds of a sweep, and busy seconds by lane."""

    seconds: float
    lanes: Mapping[str, float]


class SweepCost:
    """Prices sweeps of one model on one machine under one policy.

    homes: the tier of each page; where only the closed form is asked for, those of tables count.
    """

    def __init__(self, shape: ModelShape, machine: Machine, policy: Policy, homes: Sequence[Tier]) -> None:
        self.shape, self.machine, self.homes = shape, machine, tuple(homes)
        self._compute: Tier = machine.compute
        self._processor = machine.processors[self._compute]
        self._visits = Visits(shape, self._processor)
        self._take(policy)
        self._kinds = shape.kinds
        self._number = Counter(self._kinds.page_of)
        self._joint_number = Counter(self._kinds.joint_of.values())
        self._page_at = {joint: self._kinds.page_of[at] for at, joint in self._kinds.joint_of.items()}
        resting = [self.homes[i] for i in self._kinds.order]
        self._placed, placed_of = distinct(list(zip(self._kinds.page_of, resting, strict=True)))
        self._placed_number = Counter(placed_of)
        streams = [home != self._compute for home in resting]
        disk = machine.links.get("disk→cpu")
        self._overlap = Overlap(self._kinds, placed_of, streams, policy.slots, disk.jitter if disk else 0.0)
        # only of experts does it depend on the sweep how much of a page comes
        self._carried = [
            None if self._kinds.pages[kind].experts else self._page_carried(kind, home, 0.0)
            for kind, home in self._placed
        ]
        self._table_on_disk = any(self.homes[i] == "disk" for i in self._kinds.tables)

    def _take(self, policy: Policy) -> None:
        """Take a policy, and forget what was priced under another."""
        self.policy = policy
        self._attending = Attending(self.machine, policy)
        self._carrying = Carrying(self.shape, self.machine, policy, self._attending)
        self._memo: dict[tuple[Load, ...], Priced] = {}
        self._outlines: dict[tuple[Load, ...], _Outlined] = {}

    def with_kv(self, kv: Shares) -> "SweepCost":
        """The same with KV elsewhere, and with pages where they are."""
        other = copy(self)
        other._take(replace(self.policy, kv=kv))
        return other

    @property
    def held(self) -> Mapping[Tier, int]:
        """Bytes of pages by the tier that they rest on, tables aside."""
        held: dict[Tier, int] = dict.fromkeys(TIERS, 0)
        for i, (kind, home) in enumerate(self._placed):
            held[home] += self._placed_number[i] * self._kinds.pages[kind].nbytes
        return held

    def price(self, loads: Sequence[Load]) -> Priced:
        """A sweep of these micro-batches, among others like it."""
        return self.prices([tuple(loads)])[0]

    def prices(self, sweeps: Sequence[tuple[Load, ...]]) -> list[Priced]:
        """Many sweeps, each among others like it: much quicker than one by one."""
        new = [loads for loads in dict.fromkeys(sweeps) if loads not in self._memo]
        self._memo.update(zip(new, self._priced(new), strict=True))
        return [self._memo[loads] for loads in sweeps]

    def closed_form(self, loads: Sequence[Load], streamed: Mapping[Tier, float]) -> Priced:
        """A steady sweep without looking at single pages: every lane as busy as it is, the busiest holds the others.

        streamed: bytes of pages that rest on each tier other than the compute tier. For a search; ``price`` is exact.
        """
        outlined = self._outlined(tuple(loads))
        carried, compute, beside = dict(outlined.carried), outlined.compute, outlined.beside
        for tier, nbytes in streamed.items():
            _add(carried, self._carrying.weights(nbytes, tier))
        slower, longer = self._together(compute, carried.get("disk→cpu", 0.0))
        compute = slower * compute + outlined.fixed
        lanes = {**carried, "disk→cpu": longer * carried.get("disk→cpu", 0.0), f"{self._compute}-compute": compute}
        if beside and self._compute != "cpu":
            lanes["cpu-compute"] = beside
        seconds = sum(lanes.values()) - beside if self.policy.slots == 1 else max(lanes.values())
        return Priced(seconds, {lane: busy for lane, busy in lanes.items() if busy > 0})

    def _outlined(self, loads: tuple[Load, ...]) -> "_Outlined":
        """What a sweep takes of every lane wherever pages rest; cuts of the work have many sweeps in common."""
        if (found := self._outlines.get(loads)) is not None:
            return found
        visits = self._visits.seconds(loads)
        tokens = sum(load.tokens for load in loads)
        compute = sum(number * visits[kind] for kind, number in self._number.items())
        carried: dict[str, float] = {}
        beside = 0.0
        for i, joint in enumerate(self._joints(loads, tokens, visits)):
            number = self._joint_number[i]
            compute += number * joint.busy[0]
            beside += number * joint.beside
            _add(carried, joint.moved, number)
        found = self._outlines[loads] = _Outlined(compute, beside, carried, self._fixed_s(loads, tokens))
        return found

    def _priced(self, sweeps: Sequence[tuple[Load, ...]]) -> list[Priced]:
        taken = [self._taken(loads) for loads in sweeps]
        overlapping = [one.sweep for one in taken if self._overlaps(one.sweep)]
        overlapped = iter(self._overlap.seconds(overlapping))
        priced = []
        for one in taken:
            (compute, reads, uploads), fixed, writes = one.sweep.sums, one.sweep.fixed, one.writes
            if self._overlaps(one.sweep):
                seconds = max(next(overlapped), *writes.values())
            elif self.policy.slots == 1:
                seconds = compute + reads + uploads + sum(writes.values()) + fixed
            else:
                seconds = max(compute + fixed, *writes.values())
            lanes = {f"{self._compute}-compute": compute - one.held + fixed}
            if one.beside:
                lanes["cpu-compute"] = lanes.get("cpu-compute", 0.0) + one.beside
            lanes |= {"disk→cpu": reads, "cpu→gpu": uploads, **writes}
            priced.append(Priced(seconds, {lane: busy for lane, busy in lanes.items() if busy > 0}))
        return priced

    def _overlaps(self, sweep: Sweep) -> bool:
        """Whether something is carried to the compute tier beside what it computes."""
        _, reads, uploads = sweep.sums
        return self.policy.slots > 1 and (reads > 0 or uploads > 0)

    def _taken(self, loads: tuple[Load, ...]) -> "_Taken":
        """What a sweep takes of every lane, with what compute and disk take from each other."""
        tokens = sum(load.tokens for load in loads)
        visits = self._visits.seconds(loads)
        pages, joints = self._pages(visits, tokens), self._joints(loads, tokens, visits)
        page_sums = sums(pages, self._placed_number)
        joint_sums = sums([joint.busy for joint in joints], self._joint_number)
        slower, longer = self._together(page_sums[0] + joint_sums[0], page_sums[1] + joint_sums[1])
        factors = (slower, longer, 1.0)
        writes, beside, held = dict.fromkeys(_WRITES, 0.0), 0.0, 0.0
        for i, joint in enumerate(joints):
            beside += self._joint_number[i] * joint.beside
            held += self._joint_number[i] * joint.held
            for name in _WRITES:
                writes[name] += self._joint_number[i] * joint.moved.get(name, 0.0)
        portions = [joint.busy for joint in joints]
        fixed = self._fixed_s(loads, tokens)
        sweep = Sweep(pages, portions, scaled(page_sums, factors), scaled(joint_sums, factors), fixed)
        return _Taken(sweep, writes, beside, held)

    def _pages(self, visits: Sequence[float], tokens: float) -> list[Busy]:
        """What each kind of page takes where it rests."""
        return [
            (visits[kind], *(carried or self._page_carried(kind, home, tokens)))
            for (kind, home), carried in zip(self._placed, self._carried, strict=True)
        ]

    def _page_carried(self, kind: int, home: Tier, tokens: float) -> tuple[float, float]:
        """Seconds of reads from disk and of uploads to the gpu."""
        carried = self._carrying.page(self._kinds.pages[kind], home, tokens)
        return carried.get("disk→cpu", 0.0), carried.get("cpu→gpu", 0.0)

    def _joints(self, loads: Sequence[Load], tokens: float, visits: Sequence[float]) -> list["_Joined"]:
        """What each kind of joint takes besides its page."""
        layers: dict[AttentionShape, tuple[tuple[float, float], Mapping[str, float]]] = {
            layer: (self._attending.seconds(layer, loads), self._carrying.kv(layer, loads))
            for layer in self._kinds.layers
        }
        rest_s, activations = self._between_s(tokens), self._carrying.activations(tokens)
        joined = []
        for kind, joint in enumerate(self._kinds.joints):
            compute, beside = (rest_s if joint.begins else 0.0), 0.0
            moved: dict[str, float] = dict(activations) if joint.begins else {}
            for layer in joint.attends:
                (attend_s, elsewhere_s), kv = layers[layer]
                compute += attend_s
                beside += elsewhere_s
                _add(moved, kv)
            held = self._held_s(loads, beside, compute + visits[self._page_at[kind]])
            busy = (compute + held, moved.get("disk→cpu", 0.0), moved.get("cpu→gpu", 0.0))
            joined.append(_Joined(busy, beside, held, moved))
        return joined

    def _held_s(self, loads: Sequence[Load], beside: float, at_page: float) -> float:
        """How long compute waits at a page for the cpu beside it, which takes so long there in all.

        Attention there goes on while other micro-batches are computed at the same page; who stages KV computes nothing.
        """
        if not self._attending.away:
            return beside
        return max(0.0, beside - (1 - 1 / sum(load.calls for load in loads)) * at_page)

    def _between_s(self, tokens: float) -> float:
        """Everything between products of one layer."""
        return tokens * self.shape.traffic_bytes / self._kinds.decoders / self._processor.activation_bytes_per_s

    def _fixed_s(self, loads: Sequence[Load], tokens: float) -> float:
        """What a sweep takes besides its pages: scheduling, sampling, and rows of tables that rest on disk."""
        p = self._processor
        seconds = p.sweep_s + sum(load.samples for load in loads) * (p.row_s + self.shape.vocabulary * p.logit_s)
        link = self.machine.links.get("disk→cpu")
        if link is not None and self._table_on_disk:
            seconds += link.seconds(tokens * self.shape.hidden_bytes, round(sum(load.calls for load in loads)))
        return seconds

    def _together(self, computing: float, reading: float) -> tuple[float, float]:
        """How much longer each takes for what they take from each other, for the part of the time that both run."""
        lost, slowed = self.machine.compute_loses, self.machine.disk_loses
        if self._compute != "cpu" or not computing or not reading or self.policy.slots == 1:
            return 1.0, 1.0
        # whoever is done first ran beside the other all the time, and the other beside it just so long
        slower, longer = 1 / (1 - lost), 1 / (1 - slowed)
        if computing > (1 - lost) * longer * reading:
            return 1 + lost * longer * reading / computing, longer
        return slower, 1 + slowed * slower * computing / reading


@dataclass(frozen=True, slots=True)
class _Outlined:
    """Seconds that a sweep takes of every lane besides its pages. compute: with what it waits for the cpu beside a gpu.
    beside: of that cpu. carried: by link. fixed: that follow the last page."""

    compute: float
    beside: float
    carried: Mapping[str, float]
    fixed: float


@dataclass(frozen=True, slots=True)
class _Taken:
    """Seconds that a sweep takes of every lane. writes: by link. beside: of the cpu beside a gpu. held: of compute,
    which waits for it."""

    sweep: Sweep
    writes: Mapping[str, float]
    beside: float
    held: float


@dataclass(frozen=True, slots=True)
class _Joined:
    """Where a layer begins or attends: what it takes besides the page. beside: seconds of the cpu beside a gpu. held:
    of its compute, which waits for that. moved: seconds by link."""

    busy: Busy
    beside: float
    held: float
    moved: Mapping[str, float]


def _add(total: dict[str, float], more: Mapping[str, float], times: int = 1) -> None:
    for lane, seconds in more.items():
        total[lane] = total.get(lane, 0.0) + times * seconds
