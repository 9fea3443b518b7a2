"""KV blocks keep their bytes wherever the scheduler sends them."""

import os
from concurrent.futures import Future
from threading import Timer

import pytest
import torch

from penstock.errors import UserError
from penstock.memory.buffers import aligned_buffer
from penstock.memory.clock import Clock
from penstock.memory.device import CpuDevice, EmulatedGpu
from penstock.memory.kv import KVStore
from penstock.memory.kv_form import KVForm, KVGroup, KVLayer, kv_form
from penstock.model.pages import SECTOR
from penstock.plan.policy import Policy, Shares
from penstock.quant.grouped import Grouped
from penstock.schedule.scheduler import Scheduler
from penstock.schedule.types import Block, Move, Request

LAYERS = {0: KVLayer(2, 8, 2, 8), 1: KVLayer(1, 24, 1, 4), 2: KVLayer(2, 8, 2, 8)}
TOKENS = 16
CPU = Shares(cpu=1.0)
FORM = KVForm(torch.bfloat16, TOKENS)


@pytest.fixture(params=["cpu", "gpu"])
def store(request, tmp_path):
    device = CpuDevice() if request.param == "cpu" else EmulatedGpu()
    groups = [KVGroup({0: LAYERS[0], 1: LAYERS[1]}), KVGroup({2: LAYERS[2]}, window=32)]
    capacity = dict.fromkeys(("cpu", "disk", device.compute_tier), 1 << 20)
    made = KVStore(groups, FORM, capacity, device, Clock(), tmp_path)
    yield made
    made.close()
    device.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("made", [CpuDevice, EmulatedGpu])
def test_the_cpu_s_new_keys_lie_in_huge_pages_where_all_of_them_are_written(made, monkeypatch):
    asked, device = [], made()
    groups, packed = [KVGroup({0: LAYERS[0]})], KVForm(torch.bfloat16, 64, Grouped(4))

    def recorded(nbytes, **how):
        asked.append(how.get("huge", False))
        return aligned_buffer(nbytes, **how)

    for module in ("kv", "device"):
        monkeypatch.setattr(f"penstock.memory.{module}.aligned_buffer", recorded)
    KVStore(groups, FORM, {"cpu": 1 << 20}, device, Clock(), tier="cpu").close()
    assert asked == [True]
    KVStore([*groups, KVGroup({1: LAYERS[1]})], FORM, {"cpu": 1 << 20}, device, Clock(), tier="cpu").close()
    assert asked == [True, False, False]
    KVStore(groups, packed, {"cpu": 1 << 20}, device, Clock(), rows=4, tier="cpu").close()
    assert asked == [True, False, False, False, True]  # open blocks first, of rows that may never come
    device.close()


def filled(store, layer, block, value):
    keys, values = store.arenas(layer)
    keys[block], values[block] = value, value + 0.5
    return keys[block].clone(), values[block].clone()


def test_views_have_the_shapes_of_their_layer(store):
    for layer, shape in LAYERS.items():
        keys, values = store.arenas(layer)
        assert keys.shape[1:] == (shape.k_heads, TOKENS, shape.k_dim)
        assert values.shape[1:] == (shape.v_heads, TOKENS, shape.v_dim)


def test_blocks_and_layers_do_not_touch_each_other(store):
    kept = {(layer, block): filled(store, layer, block, 10 * layer + block) for layer in LAYERS for block in range(3)}
    for (layer, block), (keys, values) in kept.items():
        assert torch.equal(store.arenas(layer)[0][block], keys)
        assert torch.equal(store.arenas(layer)[1][block], values)


@pytest.mark.parametrize("away", ["disk", "cpu"])
def test_a_block_comes_back_as_it_went(store, away):
    here = store.device.compute_tier
    if away == here:
        pytest.skip("that is where it is already")
    kept = {layer: filled(store, layer, 1, 3 + layer) for layer in (0, 1)}
    store.move([Move(0, (here, 1), (away, 4))])
    for layer in (0, 1):
        filled(store, layer, 1, -1)
    store.move([Move(0, (away, 4), (here, 2))])
    for layer, (keys, values) in kept.items():
        assert torch.equal(store.arenas(layer)[0][2], keys)
        assert torch.equal(store.arenas(layer)[1][2], values)


def test_a_place_that_is_used_again_at_once_keeps_both_blocks(store):
    here = store.device.compute_tier
    first, second = filled(store, 0, 0, 1), filled(store, 0, 1, 2)
    store.move([Move(0, (here, 0), ("disk", 0)), Move(0, (here, 1), ("disk", 1)), Move(0, ("disk", 1), (here, 0))])
    assert torch.equal(store.arenas(0)[0][0], second[0])
    store.move([Move(0, ("disk", 0), (here, 5))])
    assert torch.equal(store.arenas(0)[0][5], first[0])


def test_staging_brings_blocks_in_the_order_that_they_are_named_in(store):
    here = store.device.compute_tier
    away, near = filled(store, 0, 0, 1), filled(store, 0, 3, 2)
    store.move([Move(0, (here, 0), ("disk", 7)), Move(0, (here, 3), ("disk", 2))])
    filled(store, 0, 0, -1)
    blocks = [Block(0, 7, "disk"), Block(0, 2, "disk")]
    staging = store.device.alloc(2 * store.stride(0))
    for pending in store.fetch(0, blocks, staging):
        pending.result()
    keys, values = store.staged_views(0, staging, 2)
    assert torch.equal(keys[0], away[0]) and torch.equal(values[1], near[1])


def test_a_move_that_fails_is_over_when_all_transfers_are(store, monkeypatch):
    failed, slow = Future(), Future()
    failed.set_exception(UserError("no room"))
    transfers = iter([[failed], [slow]])
    monkeypatch.setattr(store, "_copy", lambda layer, source, target: next(transfers))
    Timer(0.05, slow.set_result, [None]).start()
    with pytest.raises(UserError, match="no room"):
        store.move([Move(1, ("cpu", at), ("disk", at)) for at in range(2)])
    assert slow.done()


def test_what_cannot_be_made_leaves_no_file_open(tmp_path):
    (tmp_path / "kv-1").touch()  # in the way of the second group's
    groups = [KVGroup({0: LAYERS[0]}), KVGroup({2: LAYERS[2]}, window=32)]
    before = os.listdir("/proc/self/fd")
    with pytest.raises(UserError, match="kv-1"):
        KVStore(groups, FORM, {"cpu": 1 << 20, "disk": 1 << 20}, CpuDevice(), Clock(), tmp_path)
    assert os.listdir("/proc/self/fd") == before


def test_blocks_are_whole_sectors_and_seldom_mostly_empty():
    for layers in ([KVLayer(8, 128, 8, 128)], [KVLayer(1, 512, 1, 64)], [KVLayer(1, 8, 1, 8)]):
        form = kv_form(layers, torch.bfloat16)
        assert form.tokens in (16, 32, 64)
        assert layers[0].block_bytes(form) % SECTOR == 0
    assert kv_form([KVLayer(8, 128, 8, 128)], torch.bfloat16).tokens == 16
    assert kv_form([KVLayer(1, 8, 1, 8)], torch.bfloat16).tokens == 64


def rows_admitted(form: KVForm, budget: int, tokens: int) -> int:
    """Rows of so many tokens that the scheduler lets in where their open blocks take their part of a budget."""
    layer = KVLayer(8, 128, 8, 128)
    spec, policy = KVGroup({0: layer}).spec(form), Policy(CPU, CPU, CPU, 10**6, 10**9, 10**9)

    def fit(rows: int) -> int:
        scheduler = Scheduler(policy, [spec], {"cpu": budget - rows * layer.open_bytes(form)}, form.tokens, "cpu")
        for row in range(rows):
            scheduler.add(Request(str(row), [row] * tokens, 1))
        scheduler.next()
        return scheduler.running

    rows = 1
    while fit(rows + 1) == rows + 1:
        rows += 1
    return rows


@pytest.mark.parametrize(("tokens", "four", "eight"), [(4096, 3.3, 1.8), (1024, 2.8, 1.6), (512, 2.3, 1.4)])
def test_packed_blocks_hold_more_rows_in_the_same_memory(tokens, four, eight):
    budget = 40 * 4096 * 8 * 256 * 2  # of some 40 rows of 4,096 tokens
    forms = [KVForm(torch.bfloat16, 16), *(KVForm(torch.bfloat16, 64, Grouped(bits)) for bits in (4, 8))]
    plain, tight, loose = (rows_admitted(form, budget, tokens) for form in forms)
    assert tight >= four * plain
    assert loose >= eight * plain


def test_a_packed_block_takes_the_bytes_of_its_codes_and_groups():
    layer, form = KVLayer(8, 128, 8, 128), KVForm(torch.bfloat16, 64, Grouped(4))
    assert layer.block_bytes(form) == 2 * 8 * 128 * 64 * 4.5 / 8
    assert layer.open_bytes(form) == 2 * 8 * 128 * 64 * 2
    assert layer.open_bytes(KVForm(torch.bfloat16, 16)) == 0
