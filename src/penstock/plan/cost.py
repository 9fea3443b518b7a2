"""What a sweep costs: every lane's seconds, page by page.

Physical terms only: bytes over rates, FLOP over rates at their sizes, and fixed costs; docs/cost-model.md has them all.
With one slot, nothing overlaps; with more, as ``plan.pipeline`` says.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from penstock.machine.machine import Curve, LinkName, Machine, Processor
from penstock.plan.load import Load
from penstock.plan.pipeline import pipelined
from penstock.plan.policy import Policy, Shares, Tier
from penstock.plan.routed import Routed
from penstock.plan.shape import AttentionShape, ModelShape, PageShape, distinct

Busy = tuple[float, float, float]  # seconds of compute, of reads from disk and of uploads to the gpu
_NATIVE_BITS = 16
_GROUP = 64  # elements that share a scale and a zero, 16 bits each, where weights or KV are packed
_STEPS = 40  # of a sweep's busiest lane, in which sweeps are compared
_ENOUGH = 400  # pages that show how lanes overlap, of a model that has more
_NOTHING = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Priced:
    """Seconds of a sweep, and busy seconds by lane."""

    seconds: float
    lanes: Mapping[str, float]


def packed(bits: int | None, native_bits: float) -> float:
    """Bytes of something packed, as a part of its bytes unpacked: with a scale and a zero per group."""
    return 1.0 if bits is None or bits >= native_bits else (bits + 2 * 16 / _GROUP) / native_bits


class SweepCost:
    """Prices sweeps of one model on one machine under one policy.

    homes: the tier of each page; nothing where only the closed form is asked for.
    """

    def __init__(self, shape: ModelShape, machine: Machine, policy: Policy, homes: Sequence[Tier]) -> None:
        self.shape, self.machine, self.policy, self.homes = shape, machine, policy, tuple(homes)
        self._compute: Tier = machine.compute
        self._processor = machine.processors[self._compute]
        self._attends: Tier = policy.attention or self._compute
        self._weight_part = packed(policy.weight_bits, shape.weight_bits)
        self._kv_part = packed(policy.kv_bits, _NATIVE_BITS)
        self._kinds = shape.kinds
        self._number = Counter(self._kinds.page_of)
        resting = [self.homes[i] for i in self._kinds.order]
        self._placed, self._placed_of = distinct(list(zip(self._kinds.page_of, resting, strict=True)))
        self._placed_number = Counter(self._placed_of)
        self._streams = [home != self._compute for home in resting]
        self._joint_number = Counter(self._kinds.joint_of.values())
        shown = self._kinds.shown(_ENOUGH)
        self._joints_shown = {at: joint for at, joint in self._kinds.joint_of.items() if at < shown}
        self._placed_shown = self._placed_of[:shown]
        self._table_on_disk = any(self.homes[i] == "disk" for i in self._kinds.tables)
        self._memo: dict[tuple[Load, ...], Priced] = {}
        self._product_memo: dict[tuple[int, float], float] = {}
        self._stretch_memo: dict[tuple[int, ...], float] = {}

    def with_kv(self, kv: Shares) -> "SweepCost":
        """The same with KV elsewhere."""
        return SweepCost(self.shape, self.machine, replace(self.policy, kv=kv), self.homes)

    def price(self, loads: Sequence[Load]) -> Priced:
        """A sweep of these micro-batches, among others like it."""
        key = tuple(loads)
        found = self._memo.get(key)
        if found is None:
            found = self._memo[key] = self._priced(key)
        return found

    def closed_form(self, loads: Sequence[Load], streamed: Mapping[Tier, float]) -> Priced:
        """A steady sweep without looking at single pages: every lane as busy as it is, the busiest holds the others.

        streamed: bytes of pages that rest on each tier other than the compute tier. For a search; ``price`` is exact.
        """
        compute = sum(number * self._visit_s(kind, loads) for kind, number in self._number.items())
        carried: dict[str, float] = {}
        beside = 0.0
        for layer, number in self._kinds.layers.items():
            attend_s, elsewhere_s = self._attention_s(layer, loads)
            compute += number * (attend_s + elsewhere_s)
            beside += number * elsewhere_s
            _add(carried, {lane: number * s for lane, s in self._kv(layer, loads).items()})
        compute += self._kinds.decoders * self._between_s(loads)
        _add(carried, {lane: self._kinds.decoders * s for lane, s in self._activations(loads).items()})
        for tier, nbytes in streamed.items():
            _add(carried, self._up(nbytes * self._weight_part, tier))
        slower, longer = self._together(compute, carried.get("disk→cpu", 0.0))
        compute = slower * compute + self._fixed_s(loads)
        lanes = {**carried, "disk→cpu": longer * carried.get("disk→cpu", 0.0), f"{self._compute}-compute": compute}
        if beside and self._compute != "cpu":
            lanes["cpu-compute"] = beside
        seconds = sum(lanes.values()) - beside if self.policy.slots == 1 else max(lanes.values())
        return Priced(seconds, {lane: busy for lane, busy in lanes.items() if busy > 0})

    def _priced(self, loads: tuple[Load, ...]) -> Priced:
        pages, joints = self._pages(loads), self._joints(loads)
        fixed = self._fixed_s(loads)
        page_sums = _sums(pages, self._placed_number)
        joint_sums = _sums([joint.busy for joint in joints], self._joint_number)
        slower, longer = self._together(page_sums[0] + joint_sums[0], page_sums[1] + joint_sums[1])
        factors = (slower, longer, 1.0)
        pages = [_scaled(busy, factors) for busy in pages]
        portions = [_scaled(joint.busy, factors) for joint in joints]
        page_sums, joint_sums = _scaled(page_sums, factors), _scaled(joint_sums, factors)
        compute, reads, uploads = (a + b for a, b in zip(page_sums, joint_sums, strict=True))
        writes = {
            name: sum(self._joint_number[i] * joint.writes.get(name, 0.0) for i, joint in enumerate(joints))
            for name in ("gpu→cpu", "cpu→disk")
        }
        if self.policy.slots == 1:
            seconds = compute + reads + uploads + sum(writes.values()) + fixed
        elif not reads and not uploads:
            seconds = max(compute + fixed, *writes.values())
        else:
            seconds = max(self._overlapped_s(pages, portions, page_sums, joint_sums, fixed), *writes.values())
        beside = sum(self._joint_number[i] * joint.beside for i, joint in enumerate(joints))
        lanes = {f"{self._compute}-compute": compute - beside + fixed}
        if beside:
            lanes["cpu-compute"] = lanes.get("cpu-compute", 0.0) + beside
        lanes |= {"disk→cpu": reads, "cpu→gpu": uploads, **writes}
        return Priced(seconds, {lane: busy for lane, busy in lanes.items() if busy > 0})

    def _overlapped_s(
        self, pages: Sequence[Busy], portions: Sequence[Busy], page_sums: Busy, joint_sums: Busy, fixed: float
    ) -> float:
        """Seconds of a sweep whose lanes overlap.

        How much longer than its busiest lane it takes depends on how lanes compare, not on how long they are. So that
        is reckoned once for all sweeps that are alike to a fortieth of their busiest lane.
        """
        sums = [a + b for a, b in zip(page_sums, joint_sums, strict=True)]
        longest = max(sums[0] + fixed, *sums[1:])
        steps = tuple(round(_STEPS * amount / longest) for amount in (*sums, fixed))
        parts = tuple(round(_STEPS * part / of) if of else 0 for part, of in zip(joint_sums, sums, strict=True))
        found = self._stretch_memo.get((*steps, *parts))
        if found is None:
            found = self._stretch_memo[*steps, *parts] = self._stretch(pages, portions, steps, parts)
        return found * longest

    def _stretch(
        self, pages: Sequence[Busy], portions: Sequence[Busy], steps: Sequence[int], parts: Sequence[int]
    ) -> float:
        """How long a sweep takes whose busiest lane takes 1, and whose lanes have just the sums that the steps stand
        for: whoever asks first, the answer is the same."""
        in_pages = [step * (_STEPS - part) / _STEPS**2 for step, part in zip(steps, parts, strict=False)]
        in_joints = [step * part / _STEPS**2 for step, part in zip(steps, parts, strict=False)]
        pages = _summing_to(in_pages, pages, Counter(self._placed_shown))
        portions = _summing_to(in_joints, portions, Counter(self._joints_shown.values()))
        order = [
            (*pages[placed], *_NOTHING, streams)
            for placed, streams in zip(self._placed_shown, self._streams, strict=False)
        ]
        for at, joint in self._joints_shown.items():
            compute, read, upload, _, _, streams = order[at]
            more, portion_read, portion_upload = portions[joint]
            order[at] = (compute + more, read, upload, portion_read, portion_upload, streams)
        return max(1.0, pipelined(order, self.policy.slots, steps[-1] / _STEPS))

    def _pages(self, loads: Sequence[Load]) -> list[Busy]:
        """Compute, disk reads and uploads of each kind of page where it rests."""
        visits = [self._visit_s(kind, loads) for kind in range(len(self._kinds.pages))]
        busy = []
        for kind, home in self._placed:
            carried = self._carried(self._kinds.pages[kind], home, loads)
            busy.append((visits[kind], carried.get("disk→cpu", 0.0), carried.get("cpu→gpu", 0.0)))
        return busy

    def _joints(self, loads: Sequence[Load]) -> list["_Joined"]:
        """What each kind of joint takes besides its page."""
        layers = {layer: (self._attention_s(layer, loads), self._kv(layer, loads)) for layer in self._kinds.layers}
        rest_s, activations = self._between_s(loads), self._activations(loads)
        joined = []
        for joint in self._kinds.joints:
            compute, beside = (rest_s if joint.begins else 0.0), 0.0
            moved: dict[str, float] = dict(activations) if joint.begins else {}
            for layer in joint.attends:
                (attend_s, elsewhere_s), kv = layers[layer]
                compute += attend_s + elsewhere_s
                beside += elsewhere_s
                _add(moved, kv)
            busy = (compute, moved.get("disk→cpu", 0.0), moved.get("cpu→gpu", 0.0))
            joined.append(_Joined(busy, beside, moved))
        return joined

    # what is computed

    def _visit_s(self, kind: int, loads: Sequence[Load]) -> float:
        """Products of all micro-batches with one page, and what each visit costs besides."""
        samples_only = self._kinds.pages[kind].samples_only
        seconds = 0.0
        for load in loads:
            tokens = (load.samples if samples_only else load.tokens) / load.calls
            if tokens <= 0:
                continue
            visit_s = self._product_memo.get((kind, tokens))
            if visit_s is None:
                visit_s = self._product_memo[kind, tokens] = self._call_s(self._kinds.pages[kind], tokens)
            seconds += load.calls * visit_s
        return seconds

    def _call_s(self, page: PageShape, tokens: float) -> float:
        """One micro-batch at one page."""
        curve = self._products(self._processor)
        weights = float(page.weights)
        if page.experts:
            routed = Routed(tokens, self.shape.experts_chosen, self.shape.experts)
            weights *= routed.touched
            visit_s = weights * routed.product_s(curve) + routed.visited(page.experts) * self._processor.visit_s
            visit_s += routed.besides_s(page.experts, self.shape.hidden_bytes, self._processor)
        else:
            visit_s = 2 * weights * tokens / curve.at(tokens) + self._processor.visit_s
        if self._weight_part < 1:
            visit_s += weights / self._processor.dequantise_per_s
        return visit_s

    def _products(self, processor: Processor) -> Curve:
        """The rates of the model's arithmetic, or of the nearest that the processor is known to have."""
        products = processor.products
        for name in (self.shape.arithmetic, self.shape.arithmetic.partition("<")[0], "float16", "bfloat16"):
            if name in products:
                return products[name]
        return next(iter(products.values()))

    def _attention_s(self, layer: AttentionShape, loads: Sequence[Load]) -> tuple[float, float]:
        """Attention of one layer: on the compute tier, and on the cpu beside a gpu."""
        here = away = 0.0
        share = self._away()
        for load in loads:
            for spans in load.spans:
                flops = spans.pairs(layer.window) * layer.pair_flops
                read = spans.keys(layer.window) * layer.kv_bytes
                on_cpu = share if spans.count == 1 else 0.0  # a prompt's keys are at hand where they were computed
                here += (1 - on_cpu) * self._attend_s(self._processor, flops, read, spans.count)
                if on_cpu:
                    away += on_cpu * self._attend_s(self.machine.processors["cpu"], flops, read, spans.count)
        return here, away + self._staging_s(layer, loads)

    def _attend_s(self, processor: Processor, flops: float, kv_bytes: float, queries: float) -> float:
        """Attention of spans alike to so many bytes of KV, which are unpacked as a whole before, where they are packed.

        Packing what is new passes over it about as often as unpacking what is old, so both count as one.
        """
        unpack_s = kv_bytes / (_NATIVE_BITS // 8) / processor.dequantise_per_s if self._kv_part < 1 else 0.0
        return unpack_s + max(flops / processor.attention.at(queries), kv_bytes / processor.kv_bytes_per_s)

    def _staging_s(self, layer: AttentionShape, loads: Sequence[Load]) -> float:
        """Copies of KV on the cpu to where the link to the gpu can fetch it, while nothing else is launched."""
        share = self.policy.kv.of("cpu")
        if self._compute != "gpu" or not share or self._away():
            return 0.0
        return share * self._past_bytes(layer, loads) / self.machine.links["cpu→gpu"].staging_bytes_per_s

    def _past_bytes(self, layer: AttentionShape, loads: Sequence[Load]) -> float:
        """KV of earlier calls that one layer attends to, as it is stored."""
        past = sum(s.number * min(s.first, layer.window or s.first) for load in loads for s in load.spans)
        return past * layer.kv_bytes * self._kv_part

    def _away(self) -> float:
        """The part of KV that is attended to on the cpu while a gpu computes the layers."""
        if self._attends == self._compute or "cpu" not in self.machine.processors:
            return 0.0
        return 1.0 - self.policy.kv.of(self._compute)

    def _between_s(self, loads: Sequence[Load]) -> float:
        """Everything between products of one layer."""
        tokens = sum(load.tokens for load in loads)
        return tokens * self.shape.traffic_bytes / self._kinds.decoders / self._processor.activation_bytes_per_s

    def _fixed_s(self, loads: Sequence[Load]) -> float:
        """What a sweep takes besides its pages: scheduling, sampling, and rows of tables that rest on disk."""
        p = self._processor
        samples, tokens = sum(load.samples for load in loads), sum(load.tokens for load in loads)
        seconds = p.sweep_s + samples * (p.row_s + self.shape.vocabulary * p.logit_s)
        link = self.machine.links.get("disk→cpu")
        if link is not None and self._table_on_disk:
            seconds += link.seconds(tokens * self.shape.hidden_bytes, sum(load.calls for load in loads))
        return seconds

    # what is carried

    def _carried(self, page: PageShape, home: Tier, loads: Sequence[Load]) -> dict[str, float]:
        """Seconds of each link for a page on its way to the compute tier."""
        if home == self._compute:
            return {}
        part = self._weight_part
        if page.experts:
            tokens = sum(load.tokens for load in loads)
            part *= 1 - (1 - page.experts / self.shape.experts) ** (tokens * self.shape.experts_chosen)
        return self._up(page.nbytes * part, home)

    def _up(self, nbytes: float, tier: Tier, kv: bool = False) -> dict[str, float]:
        """Bytes from a tier to the compute tier; kv: they are KV blocks."""
        path: list[LinkName] = []
        if tier == "disk":
            path.append("disk→cpu")
        if self._compute == "gpu" and tier != "gpu":
            path.append("cpu→gpu")
        return self._over(path, nbytes, kv)

    def _down(self, nbytes: float, tier: Tier, kv: bool = False) -> dict[str, float]:
        """Bytes from the compute tier to a tier; kv: they are KV blocks."""
        path: list[LinkName] = []
        if self._compute == "gpu" and tier != "gpu":
            path.append("gpu→cpu")
        if tier == "disk":
            path.append("cpu→disk")
        return self._over(path, nbytes, kv)

    def _over(self, path: Sequence[LinkName], nbytes: float, kv: bool) -> dict[str, float]:
        links = {name: self.machine.links[name] for name in path if nbytes > 0}
        return {name: link.kv_seconds(nbytes) if kv else link.seconds(nbytes) for name, link in links.items()}

    def _kv(self, layer: AttentionShape, loads: Sequence[Load]) -> dict[str, float]:
        """KV of one layer that is read from, and written to, tiers other than where it is attended to."""
        moved: dict[str, float] = {}
        spans = [s for load in loads for s in load.spans]
        past_bytes = self._past_bytes(layer, loads)
        new_bytes = sum(s.number * s.count for s in spans) * layer.kv_bytes * self._kv_part
        for tier in ("cpu", "disk"):
            share = self.policy.kv.of(tier)
            if not share or tier == self._compute:
                continue
            _add(moved, self._down(share * new_bytes, tier, kv=True))
            if self._away():
                decode = sum(s.number for s in spans if s.count == 1)
                if tier == "disk":
                    _add(moved, {"disk→cpu": self.machine.links["disk→cpu"].kv_seconds(share * past_bytes)})
                # queries go down and outputs come up
                _add(moved, self._down(share * decode * self.shape.hidden_bytes, "cpu"))
                _add(moved, self._up(share * decode * self.shape.hidden_bytes, "cpu"))
            else:
                _add(moved, self._up(share * past_bytes, tier, kv=True))
        return moved

    def _activations(self, loads: Sequence[Load]) -> dict[str, float]:
        """Residual streams that are carried away and back between layers."""
        moved: dict[str, float] = {}
        nbytes = sum(load.tokens for load in loads) * self.shape.hidden_bytes
        for tier in ("cpu", "disk"):
            share = self.policy.activations.of(tier)
            if share and tier != self._compute:
                _add(moved, self._down(share * nbytes, tier))
                _add(moved, self._up(share * nbytes, tier))
        return moved

    # how it overlaps

    def _together(self, computing: float, reading: float) -> tuple[float, float]:
        """How much longer each takes for what they take from each other, for the part of the time that both run."""
        lost, slowed = self.machine.compute_loses, self.machine.disk_loses
        a = b = 1.0
        if self._compute != "cpu" or not computing or not reading or self.policy.slots == 1:
            return a, b
        for _ in range(20):
            longer = max(a * computing, b * reading)
            a = 1 / (1 - lost * b * reading / longer)
            b = 1 / (1 - slowed * a * computing / longer)
        return a, b


@dataclass(frozen=True, slots=True)
class _Joined:
    """Where a layer begins or attends: what it takes besides the page. beside: seconds on the cpu beside a gpu."""

    busy: Busy
    beside: float
    writes: Mapping[str, float]


def _sums(kinds: Sequence[Busy], number: Counter[int]) -> Busy:
    compute, reads, uploads = (
        sum(number[kind] * busy[lane] for kind, busy in enumerate(kinds)) for lane in range(len(_NOTHING) + 1)
    )
    return compute, reads, uploads


def _summing_to(totals: Sequence[float], kinds: Sequence[Busy], number: Counter[int]) -> list[Busy]:
    compute, reads, uploads = (to / of if of else 0.0 for to, of in zip(totals, _sums(kinds, number), strict=True))
    return [_scaled(busy, (compute, reads, uploads)) for busy in kinds]


def _scaled(busy: Busy, factors: Busy) -> Busy:
    return busy[0] * factors[0], busy[1] * factors[1], busy[2] * factors[2]


def _add(total: dict[str, float], more: Mapping[str, float]) -> None:
    for lane, seconds in more.items():
        total[lane] = total.get(lane, 0.0) + seconds
