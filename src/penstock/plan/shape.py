"""A model's shape as the planner sees it: pages with their bytes and products, layers with their KV. No torch.

It is read off the real skeleton (``engine.build.Blueprint.shape``), never computed by a formula per family.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from penstock.plan.types import Footprint

_T = TypeVar("_T")

NARROWEST_DTYPE_BITS = 16


@dataclass(frozen=True, slots=True)
class PageShape:
    """One page. weights: elements that a product multiplies each token with; of a page of experts, all of them.

    experts: how many experts the page holds parts of, 0 for others. samples_only: it meets only tokens whose logits are
    wanted (the LM head). table: it is looked up by row and never streams. layer: None outside the decoder. matrices:
    products that a visit makes.
    """

    nbytes: int
    weights: int
    layer: int | None
    experts: int = 0
    samples_only: bool = False
    table: bool = False
    matrices: int = 1


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """One layer's attention. kv_bytes: of one token, as it is kept. packed_elements: of one token where KV is packed,
    else 0. pair_flops: of one query token with one key, all heads, both
    products. window: keys that a query reaches back to, itself included, or None. page: index of the page after which
    it runs."""

    kv_bytes: int
    pair_flops: int
    window: int | None
    page: int
    packed_elements: int = 0


@dataclass(frozen=True, slots=True)
class Joint:
    """Where a decoder layer begins or attends. begins: the former. attends: kinds of attention that run there."""

    begins: bool
    attends: tuple[AttentionShape, ...]


@dataclass(frozen=True, slots=True)
class Kinds:
    """What differs of a model's many pages and layers.

    order: indices of the pages that a sweep visits. pages: their kinds, page_of: the kind of each. layers: kinds of
    attention, and how many layers are of each. joints: kinds, joint_of: where in the order there is one, and its kind.
    decoders: layers in all. tables: indices of pages that are looked up.
    """

    order: Sequence[int]
    pages: Sequence[PageShape]
    page_of: Sequence[int]
    layers: Mapping[AttentionShape, int]
    joints: Sequence[Joint]
    joint_of: Mapping[int, int]
    decoders: int
    tables: Sequence[int]

    def shown(self, pages: int) -> int:
        """Pages of the first layers, so many at least, that stand for an order of more than twice as many."""
        if len(self.order) <= 2 * pages:
            return len(self.order)
        return next((at for at, joint in self.joint_of.items() if at >= pages and self.joints[joint].begins), pages)


@dataclass(frozen=True)
class ModelShape:
    """Everything that the cost of a model depends on.

    arithmetic: the key of ``Processor.products`` that its products run with. experts, experts_chosen: of a layer, and
    of those the ones that a token is sent to. hidden_bytes: of one token's residual stream. traffic_bytes: read and
    written by everything between products, for one token, in all layers. vocabulary: logits of a sampled row.
    weight_bits: of a stored weight in a layer (16 for bfloat16; 4.5 with 4-bit codes in groups of 64). footprint: bytes
    that the placement rule counts with. operator_bytes: of one token, what the widest of a layer's operators reads and
    writes. heads: of queries in a layer.
    """

    name: str
    arithmetic: str
    pages: Sequence[PageShape]
    attention: Sequence[AttentionShape]
    hidden_bytes: int
    traffic_bytes: int
    vocabulary: int
    footprint: Footprint
    experts: int = 0
    experts_chosen: int = 0
    weight_bits: float = 16.0
    operator_bytes: int = 0
    heads: int = 0

    @property
    def packed(self) -> bool:
        """Whether weights are stored in fewer bits than any dtype has."""
        return self.weight_bits < NARROWEST_DTYPE_BITS

    @cached_property
    def page_bytes(self) -> int:
        """Bytes of all pages that may stream."""
        return sum(page.nbytes for page in self.pages if not page.table)

    @cached_property
    def kinds(self) -> Kinds:
        """Its pages and layers by kind."""
        order = [i for i, page in enumerate(self.pages) if not page.table]
        pages, page_of = distinct([replace(self.pages[i], layer=None) for i in order])
        at, found = _joints(self, order)
        joints, joint_of = distinct(found)
        return Kinds(
            order=order,
            pages=pages,
            page_of=page_of,
            layers=Counter(replace(layer, page=0) for layer in self.attention),
            joints=joints,
            joint_of=dict(zip(at, joint_of, strict=True)),
            decoders=len({page.layer for page in self.pages if page.layer is not None}) or 1,
            tables=[i for i, page in enumerate(self.pages) if page.table],
        )

    def parted(self, layers: int) -> tuple["ModelShape", "ModelShape"]:
        """The first so many decoder layers, and all else."""
        first = self.footprint.first_pages(layers)
        part = min(layers, self.footprint.decoders) / max(1, self.footprint.decoders)
        others = [i for i in range(len(self.pages)) if i not in first]
        return self._only(sorted(first), part), self._only(others, 1 - part)

    def _only(self, pages: Sequence[int], part: float) -> "ModelShape":
        """The same with these pages alone, and so much of what is computed between pages."""
        place = {page: at for at, page in enumerate(pages)}
        return replace(
            self,
            pages=[self.pages[i] for i in pages],
            attention=[replace(one, page=place[one.page]) for one in self.attention if one.page in place],
            traffic_bytes=round(part * self.traffic_bytes),
        )

    @property
    def kv_bytes(self) -> int:
        """KV of one token over all layers."""
        return sum(layer.kv_bytes for layer in self.attention)

    @cached_property
    def token_flops(self) -> float:
        """FLOP of one token's products in all layers, with the experts that it is sent to and without the LM head."""
        part = self.experts_chosen / self.experts if self.experts else 0.0
        return 2.0 * sum(p.weights * (part if p.experts else 1.0) for p in self.pages if not p.samples_only)


def distinct(values: Sequence[_T]) -> tuple[list[_T], list[int]]:
    """What differs of some values, and for each value which of those it is."""
    found = {value: i for i, value in enumerate(dict.fromkeys(values))}
    return list(found), [found[value] for value in values]


def _joints(shape: ModelShape, order: Sequence[int]) -> tuple[list[int], list[Joint]]:
    """Places in the order where a decoder layer begins or attends."""
    attends: dict[int, tuple[AttentionShape, ...]] = {}
    for layer in shape.attention:
        attends[layer.page] = (*attends.get(layer.page, ()), replace(layer, page=0))
    begun: set[int | None] = {None}
    places, joints = [], []
    for at, i in enumerate(order):
        decoder = shape.pages[i].layer
        if decoder not in begun or i in attends:
            places.append(at)
            joints.append(Joint(decoder not in begun, attends.get(i, ())))
        begun.add(decoder)
    return places, joints
