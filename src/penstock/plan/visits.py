"""Seconds of compute for each visit of a page: products of a micro-batch, and what they cost besides."""

from collections.abc import Sequence

from penstock.machine.machine import Processor
from penstock.plan.load import Load
from penstock.plan.routed import Routed
from penstock.plan.shape import ModelShape, PageShape


class Visits:
    """Visits of one model's kinds of pages.

    Packed weights are unpacked once for each call, unless the processor has products that unpack as they multiply.
    """

    def __init__(self, shape: ModelShape, processor: Processor) -> None:
        self._shape, self._processor = shape, processor
        self._unpacks = shape.packed and shape.arithmetic not in processor.products
        self._curve = processor.curve(shape.arithmetic)
        self._product_s = processor.product_s.get(shape.arithmetic, 0.0)
        self._call_memo: dict[tuple[float, float], Sequence[float]] = {}

    def seconds(self, loads: Sequence[Load]) -> list[float]:
        """Of all micro-batches at one page, for each kind of page."""
        totals = [0.0] * len(self._shape.kinds.pages)
        for load in loads:
            calls = load.calls
            for kind, call_s in enumerate(self._call(load.tokens / calls, load.samples / calls)):
                totals[kind] += calls * call_s
        return totals

    def _call(self, tokens: float, samples: float) -> Sequence[float]:
        """One micro-batch at each kind of page."""
        found = self._call_memo.get((tokens, samples))
        if found is None:
            weight_s = {size: 2 * size / self._curve.at(size) for size in (tokens, samples) if size > 0}
            pages = self._shape.kinds.pages
            met = [samples if page.samples_only else tokens for page in pages]
            found = [
                self._page_s(page, size, weight_s[size]) if size > 0 else 0.0
                for page, size in zip(pages, met, strict=True)
            ]
            self._call_memo[tokens, samples] = found
        return found

    def _page_s(self, page: PageShape, tokens: float, weight_s: float) -> float:
        """So many tokens at one page. weight_s: seconds of their products with one weight."""
        weights, processor = float(page.weights), self._processor
        if page.experts:
            routed = Routed(tokens, self._shape.experts_chosen, self._shape.experts)
            weights *= routed.touched
            visit_s = weights * routed.product_s(self._curve) + routed.visited(page.experts) * processor.visit_s
            visit_s += routed.besides_s(page.experts, self._shape.hidden_bytes, processor)
        else:
            visit_s = weights * weight_s + page.matrices * self._product_s + processor.visit_s
        if self._unpacks and not page.samples_only:
            visit_s += weights / processor.dequantise_per_s
        return visit_s
