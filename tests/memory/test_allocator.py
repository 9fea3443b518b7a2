"""Free heap goes back to the system when the process nears its budget, and not again and again."""

import os
import subprocess
import sys

import pytest

from penstock.memory import allocator
from penstock.memory.allocator import HeapWatch

MIB = 1 << 20


@pytest.fixture
def process(monkeypatch):
    """Resident bytes as a test says them, and how often the heap was trimmed."""

    class Process:
        resident_bytes, trims = 0, 0

        def trim(self, kept):
            self.trims += 1
            return 1

    process = Process()
    monkeypatch.setattr(allocator, "_malloc_trim", lambda: process.trim)
    monkeypatch.setattr(allocator, "_PAUSE_S", 0.0)
    monkeypatch.setattr(allocator, "resident_bytes", lambda: process.resident_bytes)
    return process


def test_a_process_far_from_its_budget_pays_nothing(process):
    watch = HeapWatch(100 * MIB)
    process.resident_bytes = 100 * MIB
    watch.look()
    assert process.trims == 0


def test_what_is_in_use_is_not_tried_again_until_it_has_grown(process):
    watch = HeapWatch(100 * MIB)
    process.resident_bytes = 101 * MIB
    for _ in range(3):
        watch.look()
    assert process.trims == 1
    process.resident_bytes += 17 * MIB
    watch.look()
    assert process.trims == 2


def test_two_looks_are_apart(process, monkeypatch):
    monkeypatch.setattr(allocator, "_PAUSE_S", 60.0)
    watch = HeapWatch(100 * MIB)
    watch.look()
    process.resident_bytes = 101 * MIB
    watch.look()
    assert process.trims == 0


def test_without_a_budget_nothing_is_watched(process):
    process.resident_bytes = 1 << 40
    HeapWatch(None).look()
    assert process.trims == 0


def test_a_c_library_without_trimming_is_left_alone(process, monkeypatch):
    monkeypatch.setattr(allocator, "_malloc_trim", lambda: None)
    process.resident_bytes = 1 << 40
    HeapWatch(1).look()


MANY_SHAPES = """
import torch
from penstock.machine.limits import resident_bytes
from penstock.memory.allocator import keep_little

keep_little()
torch.set_num_threads(1)
weight = torch.ones(256, 256, dtype=torch.bfloat16)
before = resident_bytes()
for tokens in range(9, 409):
    torch.ones(tokens, 256, dtype=torch.bfloat16) @ weight
print(resident_bytes() - before)
"""


def test_products_of_many_shapes_are_not_all_kept():
    names = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"}  # those of this process are set by now
    environment = {name: value for name, value in os.environ.items() if name not in names}
    run = subprocess.run([sys.executable, "-c", MANY_SHAPES], env=environment, capture_output=True, check=True)
    assert int(run.stdout) < 100 * MIB, "with all of them kept it is 240"
