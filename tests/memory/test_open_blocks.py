"""Places of rows' newest blocks: one for each row in flight, and none left taken by rows that are gone."""

import pytest
import torch

from penstock.memory.device import CpuDevice
from penstock.memory.kv_form import KVForm, KVLayer
from penstock.memory.open_blocks import OpenBlocks
from penstock.quant.grouped import Grouped

FORM = KVForm(torch.float32, 32, Grouped(4, 32))
LAYERS = {0: KVLayer(2, 8, 2, 4), 3: KVLayer(1, 16, 1, 16)}


@pytest.fixture
def blocks() -> OpenBlocks:
    return OpenBlocks(LAYERS, FORM, 3, CpuDevice().alloc)


def test_a_row_keeps_its_place_and_the_lowest_free_one_is_next(blocks):
    assert [blocks.place(row) for row in (7, 8, 7, 9)] == [0, 1, 0, 2]
    blocks.forget(8)
    blocks.forget(7)
    blocks.forget(7)  # it has none any more
    assert blocks.place(10) == 0 and blocks.place(9) == 2 and blocks.place(11) == 1


def test_more_rows_than_there_may_be_are_an_error(blocks):
    for row in range(3):
        blocks.place(row)
    with pytest.raises(IndexError):
        blocks.place(3)


def test_layers_and_places_do_not_touch_each_other(blocks):
    for index, layer in LAYERS.items():
        keys, values = blocks.arenas(index)
        assert keys.shape == (3, layer.k_heads, 32, layer.k_dim) and values.shape == (3, layer.v_heads, 32, layer.v_dim)
        for place in range(3):
            keys[place], values[place] = 10 * index + place, 10 * index + place + 0.5
    for index in LAYERS:
        keys, values = blocks.arenas(index)
        for place in range(3):
            assert bool((keys[place] == 10 * index + place).all())
            assert bool((values[place] == 10 * index + place + 0.5).all())
