"""Matrix products with weights that are stored in another dtype than the product is computed in, or cut into pages."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from penstock.engine.call import current_call

_PANEL_BYTES = 12 << 20  # of widened weights at a time: still in cache at the product


class Widening:
    """Products with weights stored in another dtype than they are computed in; holds the one panel it widens into."""

    def __init__(self, compute: torch.dtype, device: torch.device) -> None:
        self._panel = torch.empty(_PANEL_BYTES // compute.itemsize, dtype=compute, device=device)

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x (…, in) times weight (out, in) in x's dtype, whatever dtype the weight is stored in; exact widening.

        Panels of rows are widened into one scratch that the product then reads from cache.
        """
        if weight.dtype == x.dtype:
            return nn.functional.linear(x.contiguous(), weight, bias)
        out_features, in_features = weight.shape
        flat = x.reshape(-1, in_features).contiguous()
        out = x.new_empty((len(flat), out_features))
        rows = max(1, min(out_features, self._panel.numel() // in_features))
        scratch = self._panel if in_features <= self._panel.numel() else x.new_empty(in_features)
        scratch = scratch[: rows * in_features].view(rows, in_features)
        for first in range(0, out_features, rows):
            stop = min(first + rows, out_features)
            panel = scratch[: stop - first]
            panel.copy_(weight[first:stop])
            torch.mm(flat, panel.T, out=out[:, first:stop])
        if bias is not None:
            out += bias
        return out.view(*x.shape[:-1], out_features)


@dataclass(frozen=True, slots=True)
class RowChunk:
    """Output rows [start, stop) of a matrix, held by one page."""

    page: int
    start: int
    stop: int


class ChunkedLinear:
    """The forward of a linear layer whose matrix spans several pages: each chunk gives its own output columns."""

    def __init__(self, module: nn.Linear, param: str, chunks: Sequence[RowChunk], widening: Widening) -> None:
        self.module, self.param, self.chunks, self.widening = module, param, tuple(chunks), widening

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = x.new_empty((*x.shape[:-1], self.module.out_features))
        if x.numel() == 0:
            return out  # no row's logits are wanted: the pages are not asked for
        bias = self.module._parameters.get("bias")
        for chunk in self.chunks:
            weight = current_call().hold(chunk.page)[self.param, chunk.start]
            part = None if bias is None else bias[chunk.start : chunk.stop]
            out[..., chunk.start : chunk.stop] = self.widening.linear(x, weight, part)
        return out
