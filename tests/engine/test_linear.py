"""A linear layer in several pages asks for each in turn, and gives what the whole one would."""

from typing import Any

import pytest
import torch
from torch import nn

from penstock.engine.call import Call, Need
from penstock.engine.linear import ChunkedLinear, RowChunk, Widening

CHUNKS = [RowChunk(3, 0, 4), RowChunk(5, 4, 10)]


def chunked(linear: nn.Linear) -> ChunkedLinear:
    return ChunkedLinear(linear, "w", CHUNKS, Widening(torch.float32, torch.device("cpu")))


def run(work: Any) -> tuple[Call, list[Any]]:
    """A call that does nothing but this, up to its first page."""
    found: list[Any] = []
    nothing: Any = None
    call = Call(nothing, lambda _: found.append(work()))
    call.begin()
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
