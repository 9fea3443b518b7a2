"""New keys in their blocks, bit by bit as torch rounds them."""

import numpy as np
import pytest
import torch

from penstock.engine import append_kernel
from penstock.engine.attention import append
from penstock.engine.call_tables import CallTables

KINDS = [
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
]


def same_bits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal bits, where any NaN equals any other: torch itself gives several."""
    bits = torch.int16 if found.itemsize == 2 else torch.int32
    alike = found.contiguous().view(bits) == expected.contiguous().view(bits)
    return bool((alike | (found.isnan() & expected.isnan())).all())


def hard_floats(number: int) -> torch.Tensor:
    """Floats of every size, ties between neighbours of 16 bits, subnormals, infinities, zeros and NaN."""
    random = np.random.default_rng(0)
    any_bits = random.integers(0, 1 << 32, number // 2, dtype=np.uint32)
    ties = random.integers(0, 1 << 16, number // 8, dtype=np.uint32) << 16 | 0x8000
    half_ties = (random.integers(0x38000000 >> 12, 0x47800000 >> 12, number // 8, dtype=np.uint32) << 12).astype(
        np.uint32
    )
    special = np.array(
        [0, 1, 0x80000000, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF, 0x7FC00000, 0x7F7FFFFF, 0x477FF000]
    )
    found = np.concatenate([any_bits, ties, half_ties, special.astype(np.uint32)])
    return torch.from_numpy(np.resize(found, number).view(np.float32).copy())


@pytest.mark.parametrize(("given", "kept"), KINDS)
@pytest.mark.parametrize("part_bytes", [1, 1 << 30])
@pytest.mark.parametrize(("heads", "dim"), [(1, 64), (4, 40), (3, 5)])
def test_places_and_rounding_equal_torchs(given, kept, part_bytes, heads, dim, monkeypatch):
    monkeypatch.setattr(append_kernel, "PART_BYTES", part_bytes)
    tokens, block_tokens = 100, 16
    new = hard_floats(tokens * heads * dim).to(given).view(tokens, heads, dim).transpose(0, 1)
    buffer = torch.zeros(9, 2 * heads * block_tokens * dim, dtype=kept)
    _, arena = (half.unflatten(1, (heads, block_tokens, dim)) for half in buffer.chunk(2, 1))
    places = torch.randperm(9 * block_tokens)[:tokens]
    blocks, offsets = places // block_tokens, places % block_tokens
    expected = arena.clone()
    expected[blocks, :, offsets] = new.transpose(0, 1).to(kept)
    append_kernel.scatter(new, arena, blocks.numpy(), offsets.numpy())
    assert same_bits(arena, expected)
    assert not buffer[:, : buffer.shape[1] // 2].any()


@pytest.mark.parametrize("layout", ["heads first", "dims apart"])
def test_other_layouts_are_read_as_they_are(layout):
    new = torch.randn(2, 8, 7) if layout == "heads first" else torch.randn(2, 7, 8).mT
    arena = torch.zeros(1, 2, 16, 7)
    append_kernel.scatter(new, arena, np.zeros(8, np.int64), np.arange(8))
    assert torch.equal(arena[0, :, :8], new)


def test_a_pair_without_compiled_code_is_left_to_torch():
    new, arena = torch.randn(2, 3, 8).bfloat16(), torch.zeros(1, 2, 16, 8)
    assert not append_kernel.can_scatter(new, arena)
    append(new, new, arena, arena, CallTables.build([(4, 3)], [[0]], 16))
    assert torch.equal(arena[0, :, 4:7], new.float())


def test_no_tokens():
    arena = torch.ones(1, 2, 16, 8)
    append_kernel.scatter(torch.zeros(2, 0, 8), arena, np.empty(0, np.int64), np.empty(0, np.int64))
    assert bool((arena == 1).all())
