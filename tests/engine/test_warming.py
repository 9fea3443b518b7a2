"""Kernels are compiled before a run is planned and timed."""

import pytest
import torch

from penstock.compiled import kernels
from penstock.engine import few_kernel, pair_kernel, product_kernel
from penstock.engine.linear import Widening
from penstock.engine.warming import warm
from penstock.model.pages import Page, Slice
from penstock.quant import unpacking
from penstock.quant.grouped import Grouped
from penstock.quant.packed import Packed

FORM = Grouped(4, 32)
CPU = torch.device("cpu")


def page(kind: str) -> Page:
    nbytes = FORM.row_bytes(32)
    return Page(0, "page", kind, 0, (Slice("weight", 0, 1, (1, 32), FORM.name, 0, nbytes),), nbytes, None)


@pytest.fixture
def compiling(monkeypatch):
    """Names of the kernels that are compiled, or read from the disk, from here on."""
    found: list[str] = []

    def compiled(function, *how, **more):
        found.append(function.__name__)
        return kernels.compiled(function, *how, **more)

    for module in (few_kernel, pair_kernel, product_kernel, unpacking):
        monkeypatch.setattr(module, "compiled", compiled)
        for cached in ("_compiled", "_compiled_sum", "_compiled_pack", "_compiled_multiply"):
            if hasattr(module, cached):
                getattr(module, cached).cache_clear()
    return found


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_products_of_any_size_find_their_kernels(compute, compiling):
    warm([page("layer")], compute, CPU)
    assert compiling
    compiling.clear()
    weight = Packed(FORM, 96, torch.zeros(50, FORM.row_bytes(96), dtype=torch.uint8))
    for tokens in (1, 3, 7, 20, 33, 100):
        Widening(compute, CPU).linear(torch.zeros(tokens, 96, dtype=compute), weight, None)
    assert not compiling


def test_tables_of_rows_and_other_devices_need_none(compiling):
    warm([page("embedding")], torch.float32, CPU)
    warm([page("layer")], torch.float32, torch.device("meta"))
    assert not compiling
