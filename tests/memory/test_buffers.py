import torch

from penstock.memory.buffers import aligned_buffer, view
from penstock.model.pages import SECTOR, Slice


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def test_buffer_is_aligned_and_of_exactly_its_size():
    for nbytes in (1, 4096, 5000, 1 << 20):
        buffer = aligned_buffer(nbytes)
        assert buffer.data_ptr() % SECTOR == 0
        assert buffer.shape == (nbytes,) and buffer.dtype == torch.uint8
        buffer.fill_(7)
    assert aligned_buffer(0).numel() == 0


def test_memory_is_taken_when_touched_and_goes_back():
    before = resident_bytes()
    buffer = aligned_buffer(256 << 20)
    assert resident_bytes() - before < 16 << 20
    buffer[: 64 << 20].fill_(1)
    assert 60 << 20 < resident_bytes() - before < 90 << 20
    part = buffer[10:20]
    del buffer
    assert part.sum() == 10
    del part
    assert resident_bytes() - before < 16 << 20


def test_view_shares_memory_in_any_dtype():
    buffer = aligned_buffer(SECTOR)
    values = torch.randn(3, 5).to(torch.bfloat16)
    buffer[6:36] = values.view(torch.uint8).flatten()
    seen = view(buffer, Slice("w", 0, 3, (3, 5), "bfloat16", 6, 30))
    assert torch.equal(seen, values)
    assert seen.data_ptr() == buffer.data_ptr() + 6


def test_view_at_an_odd_offset_is_a_right_copy():
    buffer = aligned_buffer(SECTOR)
    values = torch.randn(7)
    buffer[13:41] = values.view(torch.uint8)
    assert torch.equal(view(buffer, Slice("w", 0, 7, (7,), "float32", 13, 28)), values)


def test_view_of_a_part_of_a_buffer_counts_from_that_part():
    buffer = aligned_buffer(3 * SECTOR)
    slot = buffer[SECTOR:]
    slot[8:16] = torch.tensor([1.5, 2.5]).view(torch.uint8)
    assert view(slot, Slice("w", 0, 2, (2,), "float32", 8, 8)).tolist() == [1.5, 2.5]


def test_empty_view():
    assert view(aligned_buffer(SECTOR), Slice("w", 0, 0, (0, 4), "float16", 12, 0)).shape == (0, 4)
