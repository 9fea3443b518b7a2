"""Compiling the kernels of a run before its memory is counted and its first sweep is timed."""

from collections.abc import Sequence

import numpy as np
import torch

from penstock.cuda.trial import works
from penstock.engine.attention import append, attend_blocks
from penstock.engine.build import Blueprint
from penstock.engine.call_tables import CallTables
from penstock.engine.linear import Widening
from penstock.engine.open_spans import OpenSpans
from penstock.engine.packed_attention import attend_packed
from penstock.memory.kv_form import KVForm, KVLayer, wide_arenas
from penstock.memory.native_reads import reading_kernels
from penstock.model.pages import Page
from penstock.plan.policy import Tier
from penstock.quant.forms import Form, named
from penstock.quant.fp8 import Fp8
from penstock.quant.mxfp4 import Mxfp4
from penstock.quant.packed import Packed
from penstock.quant.rows import BLOCK

_TOKENS = (1, 2, 8, 40)  # one of each kind of product: alone, few, a whole tile, many
_ROWS = 8  # of weights


def warm(model: Blueprint, device: torch.device, attention: Tier | None = None, splits: bool = False) -> None:
    """Compute with zeros, in small, whatever a model's first sweeps will, and compile what reads pages.

    attention: the tier that attends to KV, None where that is still to be planned. splits: whether the cpu may compute
    layers beside a gpu. What is compiled stays in memory, a hundred MiB with its compiler: it belongs to what a process
    has before pages are placed. Takes seconds where nothing was kept on the disk.
    """
    compute, transforms = model.precision.compute, model.footprint().transforms
    reading_kernels()
    for each in {device, torch.device("cpu")} if splits else {device}:
        warm_pages(model.layout.pages, compute, each)
    if model.kv.packed is not None:
        works(model.kv.packed, compute, device)
    if device.type == "cpu" or attention != "gpu" or model.kv.packed is not None:
        heads = int(getattr(model.config, "num_attention_heads", 0) or 0)
        for layer in {layer for group in model.groups for layer in group.layers.values()}:
            warm_attention(layer, heads, model.kv, compute, decodes=not transforms)


def warm_pages(pages: Sequence[Page], compute: torch.dtype, device: torch.device) -> None:
    """Put together rows of pages that no file holds, and try kernels of CUDA for each format on such a device; on the
    CPU, read some rows of tables, and multiply by some of zeros in each format that linear layers are stored in."""
    _rearrange({named(piece.dtype) for page in pages if page.extents is None for piece in page.slices})
    if device.type != "cpu":
        for form in {named(piece.dtype) for page in pages for piece in page.slices} - {None}:
            works(form, compute, device)
        return
    widening = Widening(compute, device)
    for name, is_table in sorted({(piece.dtype, page.kind == "embedding") for page in pages for piece in page.slices}):
        weight = _zeros(name)
        if not is_table:
            for tokens in _TOKENS:
                widening.linear(torch.zeros(tokens, weight.shape[1], dtype=compute), weight, None)
        elif isinstance(weight, Packed):
            weight.wide(compute)


def _zeros(name: str) -> torch.Tensor | Packed:
    """A few rows of a block's width, stored as that name says."""
    form = named(name)
    if form is None:
        return torch.zeros(_ROWS, BLOCK, dtype=getattr(torch, name))
    return Packed(form, form.group, torch.zeros(_ROWS, form.row_bytes(form.group), dtype=torch.uint8))


def _rearrange(forms: set[Form | None]) -> None:
    codes = np.zeros((1, Fp8().group), np.uint8)
    for form in forms:
        if isinstance(form, Fp8 | Mxfp4):
            from penstock.quant.rearranging import pack_fp8, pack_mxfp4  # imports numba: only where something is packed

            if isinstance(form, Fp8):
                pack_fp8(codes, np.zeros((1, 1), np.float32))
            else:
                pack_mxfp4(codes[:, : BLOCK // 2], codes[:, 0])


def warm_attention(layer: KVLayer, heads: int, form: KVForm, compute: torch.dtype, *, decodes: bool = True) -> None:
    """Write and attend to a layer's KV on the CPU: a prompt of a block and more, and a row that decodes behind a block.

    heads: of queries. decodes: False where keys are transformed before they are attended to.
    """
    size, queries = form.tokens, heads if heads and heads % layer.k_heads == 0 else layer.k_heads
    arenas = layer.views(torch.zeros(4 * layer.block_bytes(form), dtype=torch.uint8), form, 0, 4)
    spans, own = [(size, 1), (0, size + 1)], [[0, 1], [2, 3]]
    tokens = size + 2
    keys, values = (
        torch.zeros(number, tokens, dim, dtype=compute)
        for number, dim in ((layer.k_heads, layer.k_dim), (layer.v_heads, layer.v_dim))
    )
    q, scaling = torch.zeros(tokens, queries, layer.k_dim, dtype=compute), layer.k_dim**-0.5
    if form.packed is None:
        tables = CallTables.build(spans, own, size)
        append(keys, values, *wide_arenas(arenas), tables)
        if decodes:
            attend_blocks(q, *arenas, tables, None, scaling)
        return
    opened = tuple(torch.zeros(2, len(new), size, new.shape[2], dtype=form.dtype) for new in (keys, values))
    new = OpenSpans.build(size, spans, [True, True], [0, 1], own, torch.device("cpu"))
    new.write(0, keys, values, (opened[0], opened[1]), arenas)
    attend_packed(q, arenas, (opened[0], opened[1]), new, 0, None, scaling)
