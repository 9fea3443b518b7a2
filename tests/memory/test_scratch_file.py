import errno
import os

import pytest
import torch

from penstock.errors import UserError
from penstock.memory import files
from penstock.memory.buffers import aligned_buffer
from penstock.memory.scratch_file import ScratchFile
from penstock.model.pages import SECTOR


def test_scratch_round_trip_leaves_no_name(tmp_path):
    scratch = ScratchFile(tmp_path / "kv", 1 << 20)
    assert list(tmp_path.iterdir()) == []
    blocks = {offset: torch.randint(256, (3 * SECTOR,), dtype=torch.uint8) for offset in range(0, 1 << 19, 1 << 16)}
    for written in [scratch.write(offset, block) for offset, block in blocks.items()]:  # torch's memory: not aligned
        written.result()
    for offset, block in blocks.items():
        aligned, odd = aligned_buffer(3 * SECTOR), aligned_buffer(4 * SECTOR)[1 : 1 + 3 * SECTOR]
        scratch.read_into(offset, aligned).result()
        scratch.read_into(offset, odd).result()
        assert torch.equal(aligned, block) and torch.equal(odd, block)
    scratch.write(SECTOR, aligned).result()
    scratch.close()


def test_blocks_of_a_scratch_file_come_together(tmp_path):
    scratch = ScratchFile(tmp_path / "kv", 1 << 22)
    written = torch.randint(256, (1 << 22,), dtype=torch.uint8)
    scratch.write(0, written).result()
    for nbytes, shift in ((2 * SECTOR, 0), (2 * SECTOR, 24), (files.BOUNCE_BYTES + SECTOR, 8)):
        number = (1 << 22) // nbytes
        blocks = [(nbytes * ((at * 7 + 3) % number), nbytes * at) for at in range(number)]
        into = aligned_buffer(number * nbytes + SECTOR)[shift : shift + number * nbytes]
        arrival = scratch.read_blocks(blocks, nbytes, into)
        arrival.result()
        assert arrival.nbytes == number * nbytes
        for offset, place in blocks:
            assert torch.equal(into[place : place + nbytes], written[offset : offset + nbytes])
    with pytest.raises(ValueError, match="whole sectors"):
        scratch.read_blocks([(1 << 22, 0)], SECTOR, into)
    scratch.close()


def test_blocks_that_compiled_code_cannot_read_are_read_otherwise(tmp_path, monkeypatch):
    scratch = ScratchFile(tmp_path / "kv", 1 << 20)
    written = torch.randint(256, (1 << 20,), dtype=torch.uint8)
    scratch.write(0, written).result()
    monkeypatch.setattr(files.File, "descriptor", -1)
    into = aligned_buffer(2 * SECTOR)
    scratch.read_blocks([(5 * SECTOR, 0), (SECTOR, SECTOR)], SECTOR, into).result()
    assert torch.equal(into[:SECTOR], written[5 * SECTOR : 6 * SECTOR])
    assert torch.equal(into[SECTOR:], written[SECTOR : 2 * SECTOR])
    scratch.close()


class DeviceMemory:
    """A stand-in for a tensor that is not in host memory."""

    device = torch.device("meta")

    def __init__(self, held):
        self.held = held

    def numel(self):
        return self.held.numel()

    def __getitem__(self, part):
        return DeviceMemory(self.held[part])

    def copy_(self, host):
        self.held.copy_(host)


def test_scratch_reads_to_device_memory_by_way_of_the_host(tmp_path):
    scratch = ScratchFile(tmp_path / "kv", 4 << 20)
    written = torch.randint(256, (files.BOUNCE_BYTES + SECTOR,), dtype=torch.uint8)
    scratch.write(SECTOR, written).result()
    landed = torch.zeros_like(written)
    scratch.read_into(SECTOR, DeviceMemory(landed)).result()
    assert torch.equal(landed, written)
    scratch.close()


def test_scratch_takes_its_space_at_once_or_as_it_is_written(tmp_path):
    whole, sparse = ScratchFile(tmp_path / "kv-0", 1 << 20), ScratchFile(tmp_path / "kv-1", 1 << 20, sparse=True)
    assert whole.taken_bytes >= 1 << 20 and sparse.taken_bytes < 1 << 19
    sparse.write(0, aligned_buffer(1 << 19).fill_(1)).result()
    assert 1 << 19 <= sparse.taken_bytes < 1 << 20
    for scratch in (whole, sparse):
        scratch.close()


def test_scratch_takes_large_unaligned_buffers_in_steps(tmp_path):
    scratch = ScratchFile(tmp_path / "kv", 4 << 20)
    source = aligned_buffer((3 << 20) + SECTOR)[7 : 7 + (3 << 20)].random_()
    scratch.write(SECTOR, source).result()
    back = aligned_buffer(3 << 20)
    scratch.read_into(SECTOR, back).result()
    assert torch.equal(back, source)
    scratch.close()


@pytest.mark.parametrize(("offset", "nbytes"), [(1, SECTOR), (0, 100), (SECTOR, 4 * SECTOR), (-SECTOR, SECTOR)])
def test_scratch_refuses_what_is_not_whole_sectors_within_it(tmp_path, offset, nbytes):
    scratch = ScratchFile(tmp_path / "kv", 4 * SECTOR)
    with pytest.raises(ValueError, match="whole sectors"):
        scratch.write(offset, aligned_buffer(nbytes))
    scratch.close()


def test_a_disk_that_is_too_small_is_said_beforehand(tmp_path):
    with pytest.raises(UserError, match="--offload-dir"):
        ScratchFile(tmp_path / "kv", 1 << 60)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_stops_short_is_an_error(tmp_path, monkeypatch):
    room = [1000, 0]  # bytes that the disk still takes: the end is no whole sector

    def pwritev(descriptor, memory, offset):
        return room.pop(0)

    scratch = ScratchFile(tmp_path / "kv", 4 * SECTOR)
    monkeypatch.setattr(os, "pwritev", pwritev)
    with pytest.raises(UserError, match=r"cannot write .*kv at byte 5,096: No space left") as caught:
        scratch.write(SECTOR, aligned_buffer(2 * SECTOR)).result()
    assert caught.value.__cause__.errno == errno.ENOSPC
    scratch.close()


def test_scratch_in_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot open"):
        ScratchFile(tmp_path / "no" / "kv", SECTOR)
