"""Compiling the kernels of a model's products before its memory is counted and its first sweep is timed."""

from collections.abc import Sequence

import torch

from penstock.engine.linear import Widening
from penstock.model.pages import Page
from penstock.quant.forms import named
from penstock.quant.packed import Packed
from penstock.quant.rows import BLOCK

_TOKENS = (1, 2, 8, 40)  # one of each kind of product: alone, few, a whole tile, many
_ROWS = 8  # of weights


def warm(pages: Sequence[Page], compute: torch.dtype, device: torch.device) -> None:
    """Multiply by a few rows of zeros in each format that linear layers are stored in; nothing off the CPU.

    What is compiled stays in memory, a hundred MiB with its compiler: it belongs to what a process has before pages are
    placed. Takes seconds where nothing was kept on the disk.
    """
    if device.type != "cpu":
        return
    widening = Widening(compute, device)
    for name in sorted({piece.dtype for page in pages if page.kind != "embedding" for piece in page.slices}):
        form = named(name)
        columns = BLOCK if form is None else form.group
        weight: torch.Tensor | Packed
        if form is None:
            weight = torch.zeros(_ROWS, columns, dtype=getattr(torch, name))
        else:
            weight = Packed(form, columns, torch.zeros(_ROWS, form.row_bytes(columns), dtype=torch.uint8))
        for tokens in _TOKENS:
            widening.linear(torch.zeros(tokens, columns, dtype=compute), weight, None)
