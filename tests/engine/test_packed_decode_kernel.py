"""The kernel that decodes over packed blocks: what torch makes of the same blocks unpacked."""

import numpy as np
import pytest
import torch

from penstock.engine import decode_kernel, packed_decode_kernel
from penstock.engine.attention import attend_blocks, decode_gathered
from penstock.engine.call_tables import CallTables
from penstock.memory.kv_form import KVForm, KVLayer
from penstock.quant.grouped import Grouped


def blocks_of(form, layer, count):
    torch.manual_seed(0)
    form = KVForm(torch.bfloat16, form.group, form)
    arena = torch.zeros(count * layer.block_bytes(form), dtype=torch.uint8)
    arenas = layer.views(arena, form, 0, count)
    for blocks in arenas:
        blocks.pack(torch.arange(count), torch.randn(blocks.shape))
    return arenas


@pytest.mark.parametrize("form", [Grouped(bits, group) for bits in (4, 8) for group in (32, 64, 128)])
@pytest.mark.parametrize(("heads", "layer"), [(6, KVLayer(2, 64, 2, 64)), (5, KVLayer(1, 96, 1, 40))])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_rows_see_their_packed_blocks_from_their_lowest_key_on(form, heads, layer, softcap, monkeypatch):
    monkeypatch.setattr(decode_kernel, "PART_BYTES", 1)
    keys, values = blocks_of(form, layer, 9)
    size = form.group
    lengths = [1, size, 3 * size + 1, 4 * size + 7]
    held = [[], [2], [0, 5, 8], [-1, 7, 1, 3]]
    tables = CallTables.build([(length, 1) for length in lengths], held, size)
    q = torch.randn(4, heads, layer.k_dim)
    lowest = torch.tensor([0, 0, 5, size + 3])
    found = attend_blocks(q, keys, values, tables, lowest, 0.3, softcap)
    out, lse = torch.empty(4, heads, layer.v_dim), torch.empty(4, heads)
    decode_gathered(q, keys, values, tables, lowest, 0.3, softcap, out, lse)
    torch.testing.assert_close(found[0], out, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(found[1], lse, rtol=2e-5, atol=2e-5)
    assert found[1][0].isinf().all()  # a row without a full block


def test_what_is_not_a_number_stays_none():
    keys, values = blocks_of(Grouped(4), KVLayer(1, 64, 1, 64), 1)
    wide = torch.randn(1, 1, 64, 64)
    wide[0, 0, 3, 5] = torch.inf
    values.pack(torch.tensor([0]), wide)
    out, lse = torch.empty(1, 1, 64), torch.empty(1, 1)
    table, zeros = np.zeros((1, 1), np.int32), np.zeros(1, np.int64)
    packed_decode_kernel.decode(torch.randn(1, 1, 64), keys, values, table, zeros, zeros, 1.0, None, out, lse)
    assert out.isnan().all()
