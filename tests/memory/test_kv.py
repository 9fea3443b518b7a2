"""KV blocks on tiers: what they take."""

import os

import torch

from penstock.memory.clock import Clock
from penstock.memory.device import CpuDevice
from penstock.memory.direct import ScratchFile
from penstock.memory.kv import KVGroup, KVLayer, KVStore

LAYER = KVLayer(k_heads=2, k_dim=16, v_heads=2, v_dim=16)
CAPACITY = 4 << 20


def taken_bytes(files: list[ScratchFile]) -> int:
    return sum(os.fstat(file._file._descriptor).st_blocks * 512 for file in files)


def test_groups_on_disk_do_not_each_take_the_whole_budget(tmp_path):
    groups = [KVGroup({0: LAYER}, None), KVGroup({1: LAYER}, 8)]
    capacity = {"cpu": CAPACITY, "disk": CAPACITY}
    store = KVStore(groups, 16, torch.float32, capacity, CpuDevice(), Clock(), tmp_path)
    assert taken_bytes(list(store._files.values())) <= CAPACITY
    store.close()
    store = KVStore(groups[:1], 16, torch.float32, capacity, CpuDevice(), Clock(), tmp_path)
    assert taken_bytes(list(store._files.values())) >= CAPACITY * 9 // 10, "one group's space is taken beforehand"
    store.close()
    assert not list(tmp_path.iterdir())
