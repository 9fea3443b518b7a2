"""A linear layer in several pages asks for each in turn, and gives what the whole one would."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from penstock.engine.call import Call, Need
from penstock.engine.linear import ChunkedLinear, RowChunk, Widening
from penstock.quant.mxfp4 import Mxfp4
from penstock.quant.packed import Packed
from penstock.quant.rearranging import pack_mxfp4

CHUNKS = [RowChunk(3, 0, 4), RowChunk(5, 4, 10)]


def chunked(linear: nn.Linear) -> ChunkedLinear:
    return ChunkedLinear(linear, "w", CHUNKS)


def run(work: Any) -> tuple[Call, list[Any]]:
    """A call that does nothing but this, up to its first page."""
    found: list[Any] = []
    nothing: Any = None
    call = Call(nothing, lambda _: found.append(work()), Widening(torch.float32, torch.device("cpu")))
    call.go_on()
    return call, found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_chunks_make_the_whole(bias: bool, stored: torch.dtype) -> None:
    linear = nn.Linear(8, 10, bias=bias).requires_grad_(False)
    weight, x = linear.weight.to(stored), torch.randn(1, 3, 8)
    layer = chunked(linear)
    call, found = run(lambda: layer(x))
    for chunk in CHUNKS:
        assert call.need == Need(chunk.page)
        call.resume(chunk.page, {("w", chunk.start): weight[chunk.start : chunk.stop]})
    assert call.dead
    torch.testing.assert_close(found[0], nn.functional.linear(x, weight.float(), linear.bias))


def test_no_page_is_asked_for_where_no_row_is_wanted() -> None:
    layer = chunked(nn.Linear(8, 10))
    call, found = run(lambda: layer(torch.empty(1, 0, 8)))
    assert call.dead and found[0].shape == (1, 0, 10)


@pytest.mark.parametrize("tokens", [1, 3, 40, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_packed_weights_meet_16_bit_activations(tokens: int, dtype: torch.dtype) -> None:
    """Rounded once, whether few tokens are multiplied in float32 or many in 16 bits."""
    draw = torch.Generator().manual_seed(0)
    weights = Packed(Mxfp4(), 96, torch.from_numpy(pack_mxfp4(*_mxfp4(50, 96))))
    x = torch.randn(2, tokens, 96, generator=draw).to(dtype)
    expected = x.float() @ weights.wide(torch.float32).T
    got = Widening(dtype, torch.device("cpu")).linear(x, weights, None)
    assert got.dtype == dtype
    assert ((got.float() - expected).abs() <= torch.finfo(dtype).eps * (expected.abs() + 1e-2 * expected.std())).all()


def _mxfp4(rows: int, columns: int) -> tuple[Any, Any]:
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (rows, columns // 32, 16), np.uint8), np.full((rows, columns // 32), 120, np.uint8)
