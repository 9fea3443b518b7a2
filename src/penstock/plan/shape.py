"""A model's shape as the planner sees it: pages with their bytes and products, layers with their KV. No torch.

It is read off the real skeleton (``engine.build.Blueprint.shape``), never computed by a formula per family.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.plan.types import Footprint


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
    """One layer's attention. kv_bytes: of one token. pair_flops: of one query token with one key, all heads, both
    products. window: keys that a query reaches back to, itself included, or None. page: index of the page after which
    it runs."""

    kv_bytes: int
    pair_flops: int
    window: int | None
    page: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Everything that the cost of a model depends on.

    arithmetic: the key of ``Processor.products`` that its products run with. experts, experts_chosen: of a layer, and
    of those the ones that a token is sent to. hidden_bytes: of one token's residual stream. traffic_bytes: read and
    written by everything between products, for one token, in all layers. vocabulary: logits of a sampled row.
    weight_bits: of a stored weight (16 for bfloat16). footprint: bytes that the placement rule counts with.
    operator_bytes: of one token, what the widest of a layer's operators reads and writes. heads: of queries in a layer.
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
    def page_bytes(self) -> int:
        """Bytes of all pages that may stream."""
        return sum(page.nbytes for page in self.pages if not page.table)

    @property
    def kv_bytes(self) -> int:
        """KV of one token over all layers."""
        return sum(layer.kv_bytes for layer in self.attention)

    @property
    def token_flops(self) -> float:
        """FLOP of one token's products in all layers, with the experts that it is sent to and without the LM head."""
        part = self.experts_chosen / self.experts if self.experts else 0.0
        return 2.0 * sum(p.weights * (part if p.experts else 1.0) for p in self.pages if not p.samples_only)
