"""Matrix products with weights that are stored in another dtype than the product is computed in, or cut into pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import nn

from penstock.cuda.trial import FEW, works
from penstock.engine.call import current_call
from penstock.quant.packed import Packed

if TYPE_CHECKING:
    from penstock.engine.product_kernel import Multiplier

_PANEL_BYTES = 12 << 20  # of widened weights or packed activations at a time: still in cache at the product


class Widening:
    """Products with weights stored in another dtype than they are computed in; holds the one scratch for all of them.

    On the CPU a compiled kernel widens while it multiplies in float32 and the scratch holds its activations, or
    multiplies few tokens in pairs; on CUDA one unpacks while it multiplies few. What no kernel takes is brought to the
    product's dtype in the scratch, by panels.
    """

    def __init__(self, compute: torch.dtype, device: torch.device) -> None:
        self._panel = torch.empty(_PANEL_BYTES // compute.itemsize, dtype=compute, device=device)
        self._multiplier: Multiplier | None = None

    def _kernel(self, x: torch.Tensor, weight: torch.Tensor | Packed) -> "Multiplier | None":
        """What is compiled for such a product, if anything."""
        if self._panel.device.type != "cpu" or (_alike(weight, x) and x.dtype != torch.bfloat16):
            return None
        if self._multiplier is None:
            from penstock.engine.product_kernel import Multiplier  # imports numba: only where it is needed

            self._multiplier = Multiplier(self._panel.view(torch.float32))
        return self._multiplier if self._multiplier.takes(x, weight) else None

    def linear(self, x: torch.Tensor, weight: torch.Tensor | Packed, bias: torch.Tensor | None) -> torch.Tensor:
        """x (…, in) times weight (out, in) in x's dtype, however the weight is stored; exact widening."""
        flat = x.reshape(-1, weight.shape[1]).contiguous()
        kernel = self._kernel(flat, weight)
        if kernel is None and _alike(weight, x):
            return nn.functional.linear(flat.view(x.shape), weight, bias)
        out = x.new_empty((flat.shape[0], weight.shape[0]))
        self._write(kernel, flat, weight, out)
        self.forget()
        if bias is not None:
            out += bias
        return out.view(*x.shape[:-1], weight.shape[0])

    def write(self, x: torch.Tensor, weight: torch.Tensor | Packed, out: torch.Tensor) -> None:
        """Write x (T, in) times weight (out, in) to out (T, out), whose rows may lie apart; x is contiguous.

        The same tensor object may be given again with other weights, which spares a pass over it, as long as it has not
        been changed; ``forget`` when it is done with.
        """
        self._write(self._kernel(x, weight), x, weight, out)

    def _write(
        self, kernel: "Multiplier | None", x: torch.Tensor, weight: torch.Tensor | Packed, out: torch.Tensor
    ) -> None:
        if kernel is not None:
            kernel.multiply(x, weight, out)
        elif _alike(weight, x):
            out.copy_(nn.functional.linear(x, weight))
        elif isinstance(weight, Packed) and len(x) <= FEW and works(weight.form, x.dtype, x.device):
            from penstock.cuda.few import multiply_few  # imports triton: only where it is there

            multiply_few(x, weight, out)
        else:
            self._by_panels(x, weight, out)

    def forget(self) -> None:
        """Let go of the activations that were multiplied last."""
        if self._multiplier is not None:
            self._multiplier.forget()

    def _by_panels(self, flat: torch.Tensor, weight: torch.Tensor | Packed, out: torch.Tensor) -> None:
        """The product by rows of weights that are widened into the scratch, and read by the product from cache."""
        self.forget()  # its scratch is used here
        out_features, in_features = weight.shape
        rows = max(1, min(out_features, self._panel.numel() // in_features))
        scratch = self._panel if in_features <= self._panel.numel() else flat.new_empty(in_features)
        scratch = scratch[: rows * in_features].view(rows, in_features)
        for first in range(0, out_features, rows):
            stop = min(first + rows, out_features)
            panel = scratch[: stop - first]
            part = weight[first:stop]
            if isinstance(part, Packed):
                part.write(panel)
            else:
                panel.copy_(part)
            torch.mm(flat, panel.T, out=out[:, first:stop])


def _alike(weight: torch.Tensor | Packed, x: torch.Tensor) -> TypeGuard[torch.Tensor]:
    """Whether torch multiplies them as they are."""
    return isinstance(weight, torch.Tensor) and weight.dtype == x.dtype


@dataclass(frozen=True, slots=True)
class RowChunk:
    """Output rows [start, stop) of a matrix, held by one page."""

    page: int
    start: int
    stop: int


class ChunkedLinear:
    """The forward of a linear layer whose matrix spans several pages: each chunk gives its own output columns."""

    def __init__(self, module: nn.Linear, param: str, chunks: Sequence[RowChunk]) -> None:
        self.module, self.param, self.chunks = module, param, tuple(chunks)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = x.new_empty((*x.shape[:-1], self.module.out_features))
        if x.numel() == 0:
            return out  # no row's logits are wanted: the pages are not asked for
        flat, flat_out = x.reshape(-1, x.shape[-1]).contiguous(), out.view(-1, out.shape[-1])
        call = current_call()
        for chunk in self.chunks:
            weight = call.hold(chunk.page)[self.param, chunk.start]
            call.widening.write(flat, weight, flat_out[:, chunk.start : chunk.stop])
        call.widening.forget()
        bias = self.module._parameters.get("bias")
        if bias is not None:
            out += bias
        return out
