"""What a sweep costs: every lane's seconds, page by page.

Physical terms only: bytes over rates, FLOP over rates at their sizes, and fixed costs; docs/cost-model.md has them all.
With one slot, nothing overlaps; with more, as ``plan.pipeline`` says.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from penstock.machine.machine import Curve, LinkName, Machine, Processor
from penstock.plan.load import Load
from penstock.plan.pipeline import Up, pipelined
from penstock.plan.policy import Policy, Shares, Tier
from penstock.plan.routed import Routed
from penstock.plan.shape import AttentionShape, ModelShape, PageShape

_T = TypeVar("_T")
_NATIVE_BITS = 16
_GROUP = 64  # elements that share a scale and a zero, 16 bits each, where weights or KV are packed


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
        self._layers = len({page.layer for page in shape.pages if page.layer is not None}) or 1
        self._order = [i for i, page in enumerate(shape.pages) if not page.table]
        # a model has many pages and layers of few kinds
        kinds = [replace(shape.pages[i], layer=None) for i in self._order]
        self._kinds, self._kind_of = _distinct(kinds)
        self._number = Counter(self._kind_of)
        resting = [self.homes[i] for i in self._order] if self.homes else []
        self._placed, self._placed_of = _distinct(list(zip(kinds, resting, strict=False)))
        self._layer_kinds = Counter(replace(layer, page=0) for layer in shape.attention)
        self._joints = _joints(shape, self._order)
        self._memo: dict[tuple[Load, ...], Priced] = {}

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
        compute = sum(self._number[i] * self._visit_s(kind, loads) for i, kind in enumerate(self._kinds))
        carried: dict[str, float] = {}
        beside = 0.0
        for layer, number in self._layer_kinds.items():
            attend_s, elsewhere_s = self._attention_s(layer, loads)
            compute += number * (attend_s + elsewhere_s)
            beside += number * elsewhere_s
            _add(carried, {lane: number * s for lane, s in self._kv(layer, loads).items()})
        compute += self._layers * self._between_s(loads)
        _add(carried, {lane: self._layers * s for lane, s in self._activations(loads).items()})
        for tier, nbytes in streamed.items():
            _add(carried, self._up(nbytes * self._weight_part, tier))
        (compute,), (read,) = self._together([compute], [carried.get("disk→cpu", 0.0)])
        compute += self._fixed_s(loads)
        lanes = {**carried, "disk→cpu": read, f"{self._compute}-compute": compute}
        if beside and self._compute != "cpu":
            lanes["cpu-compute"] = beside
        seconds = sum(lanes.values()) - beside if self.policy.slots == 1 else max(lanes.values())
        return Priced(seconds, {lane: busy for lane, busy in lanes.items() if busy > 0})

    def _priced(self, loads: tuple[Load, ...]) -> Priced:
        visits = [self._visit_s(kind, loads) for kind in self._kinds]
        compute = [visits[kind] for kind in self._kind_of]
        carried = [self._carried(page, home, loads) for page, home in self._placed]
        pages = Up.of([carried[placed] for placed in self._placed_of])
        layers = {layer: (self._attention_s(layer, loads), self._kv(layer, loads)) for layer in self._layer_kinds}
        rest_s, activations = self._between_s(loads), self._activations(loads)
        portions = Up([0.0] * len(compute), [0.0] * len(compute))
        writes = {"gpu→cpu": 0.0, "cpu→disk": 0.0}
        beside = 0.0  # attention where the layers are not computed
        for at, begins, attends in self._joints:
            moved: dict[str, float] = {}
            if begins:
                compute[at] += rest_s
                _add(moved, activations)
            for layer in attends:
                (attend_s, elsewhere_s), kv = layers[layer]
                compute[at] += attend_s + elsewhere_s
                beside += elsewhere_s
                _add(moved, kv)
            portions.reads[at], portions.uploads[at] = moved.get("disk→cpu", 0.0), moved.get("cpu→gpu", 0.0)
            for name in writes:
                writes[name] += moved.get(name, 0.0)
        reads = pages.reads + portions.reads
        compute, reads = self._together(compute, reads)
        pages.reads, portions.reads = reads[: len(compute)], reads[len(compute) :]
        fixed = self._fixed_s(loads)
        uploads = pages.uploads + portions.uploads
        if self.policy.slots == 1:
            seconds = sum(compute) + sum(reads) + sum(uploads) + sum(writes.values()) + fixed
        else:
            streamed = [self.homes[i] != self._compute for i in self._order]
            seconds = max(pipelined(compute, pages, portions, streamed, self.policy.slots, fixed), *writes.values())
        lanes = {f"{self._compute}-compute": sum(compute) - beside + fixed}
        if beside:
            lanes["cpu-compute"] = lanes.get("cpu-compute", 0.0) + beside
        lanes |= {"disk→cpu": sum(reads), "cpu→gpu": sum(uploads), **writes}
        return Priced(seconds, {lane: busy for lane, busy in lanes.items() if busy > 0})

    # what is computed

    def _visit_s(self, page: PageShape, loads: Sequence[Load]) -> float:
        """Products of all micro-batches with one page, and what each visit costs besides."""
        curve = self._products(self._processor)
        seconds = 0.0
        for load in loads:
            tokens = (load.samples if page.samples_only else load.tokens) / load.calls
            if tokens <= 0:
                continue
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
            seconds += load.calls * visit_s
        return seconds

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
        return tokens * self.shape.traffic_bytes / self._layers / self._processor.activation_bytes_per_s

    def _fixed_s(self, loads: Sequence[Load]) -> float:
        """What a sweep takes besides its pages: scheduling, sampling, and rows of tables that rest on disk."""
        p = self._processor
        samples, tokens = sum(load.samples for load in loads), sum(load.tokens for load in loads)
        seconds = p.sweep_s + samples * (p.row_s + self.shape.vocabulary * p.logit_s)
        link = self.machine.links.get("disk→cpu")
        tables = [page for i, page in enumerate(self.shape.pages) if page.table and self.homes[i] == "disk"]
        if link is not None and tables:
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

    def _together(self, compute: list[float], reads: list[float]) -> tuple[list[float], list[float]]:
        """Both slowed by what they take from each other, for the part of the time in which the other is busy."""
        lost, slowed = self.machine.compute_loses, self.machine.disk_loses
        computing, reading = sum(compute), sum(reads)
        if self._compute != "cpu" or not computing or not reading or self.policy.slots == 1:
            return compute, reads
        a = b = 1.0
        for _ in range(20):
            longer = max(a * computing, b * reading)
            a = 1 / (1 - lost * b * reading / longer)
            b = 1 / (1 - slowed * a * computing / longer)
        return [a * s for s in compute], [b * s for s in reads]


def _distinct(values: Sequence[_T]) -> tuple[list[_T], list[int]]:
    """What differs of some values, and for each value which of those it is."""
    found = {value: i for i, value in enumerate(dict.fromkeys(values))}
    return list(found), [found[value] for value in values]


def _joints(shape: ModelShape, order: Sequence[int]) -> list[tuple[int, bool, list[AttentionShape]]]:
    """Places in the order where a decoder layer begins or attends, with the kinds of attention that run there."""
    attends: dict[int, list[AttentionShape]] = {}
    for layer in shape.attention:
        attends.setdefault(layer.page, []).append(replace(layer, page=0))
    begun: set[int | None] = {None}
    joints = []
    for at, i in enumerate(order):
        decoder = shape.pages[i].layer
        if decoder not in begun or i in attends:
            joints.append((at, decoder not in begun, attends.get(i, [])))
        begun.add(decoder)
    return joints


def _add(total: dict[str, float], more: Mapping[str, float]) -> None:
    for lane, seconds in more.items():
        total[lane] = total.get(lane, 0.0) + seconds
