import errno
import gc
import os
import threading
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import UserError
from penstock.memory import direct, files
from penstock.memory.buffers import aligned_buffer
from penstock.memory.direct import DirectReader, ScratchFile
from penstock.model.pages import SECTOR, Extent

FILE_BYTES = 3 * (1 << 20) + 777


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("direct") / "weights.bin"
    path.write_bytes(os.urandom(FILE_BYTES))
    return path


@pytest.fixture(scope="module")
def content(file):
    return file.read_bytes()


@pytest.fixture(scope="module")
def reader():
    reader = DirectReader(threads=4, chunk_bytes=64 << 10)
    yield reader
    reader.close()


def bytes_of(buffer: torch.Tensor) -> bytes:
    return buffer.numpy().tobytes()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_extents_arrive_and_nothing_else_is_touched(file, content, reader, data):
    start = data.draw(st.sampled_from([0, SECTOR, 24]))
    extents, expected, at = [], bytearray(b"\xee" * start), 0
    for _ in range(data.draw(st.integers(1, 5))):
        offset = data.draw(st.one_of(st.integers(0, FILE_BYTES), st.just(FILE_BYTES - 5)))
        nbytes = min(data.draw(st.sampled_from([0, 1, 100, SECTOR, 9000, 300_000])), FILE_BYTES - offset)
        gap = data.draw(st.one_of(st.integers(0, 50), st.just((offset - at) % SECTOR)))
        extents.append(Extent(str(file), offset, nbytes, at + gap))
        expected += b"\xee" * gap + content[offset : offset + nbytes]
        at += gap + nbytes
    buffer = aligned_buffer(len(expected) + 64)
    buffer.fill_(0xEE)
    assert reader.read(extents, buffer, start) == sum(extent.nbytes for extent in extents)
    assert bytes_of(buffer) == bytes(expected) + b"\xee" * 64


def test_a_misaligned_buffer_is_filled_too(file, content, reader):
    buffer = aligned_buffer(1 << 21)[3 : 3 + (1 << 20)]
    reader.read([Extent(str(file), SECTOR, 1 << 20, 0)], buffer)
    assert bytes_of(buffer) == content[SECTOR : SECTOR + (1 << 20)]


def test_neighbours_are_read_as_one(file):
    parts = [Extent(str(file), 10 + 50 * part, 50, 90 + 50 * part) for part in range(4)]
    assert list(direct._joined(parts)) == [Extent(str(file), 10, 200, 90)]
    assert len(list(direct._joined([parts[0], parts[2]]))) == 2


def test_the_page_cache_does_not_grow(tmp_path, reader):
    path = tmp_path / "cold.bin"
    path.write_bytes(os.urandom(8 << 20))
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def cached(offset):
        try:  # RWF_NOWAIT reads only what is in memory, but sets off reading ahead: ask once per place
            return os.preadv(descriptor, [bytearray(SECTOR)], offset, os.RWF_NOWAIT) > 0
        except BlockingIOError:
            return False

    if cached(0):
        pytest.skip("this file system lives in memory")
    buffer = aligned_buffer(8 << 20)
    reader.read([Extent(str(path), 0, 8 << 20, 0)], buffer)
    reader.read_rows(str(path), 128, 6000, list(range(0, 1000, 5)))
    assert not any(cached(offset) for offset in (4 << 20, 6 << 20))
    os.close(descriptor)


def test_rows_in_the_order_asked_repeats_included(file, content, reader):
    rows = [5, 900, 5, 0, 301, 300]
    table = reader.read_rows(str(file), 777, 1536, rows)
    assert table.shape == (6, 1536)
    for row, got in zip(rows, table, strict=True):
        assert bytes_of(got) == content[777 + row * 1536 : 777 + (row + 1) * 1536]
    assert reader.read_rows(str(file), 777, 1536, []).shape == (0, 1536)


def test_a_truncated_file_is_named(file, reader):
    with pytest.raises(UserError, match=r"weights\.bin ends at byte 3,146,505 where 3,153,920 are needed"):
        reader.read([Extent(str(file), 0, 770 * SECTOR, 0)], aligned_buffer(4 << 20))
    with pytest.raises(UserError, match=r"weights\.bin ends"):
        reader.read([Extent(str(file), FILE_BYTES - 10, 20, 0)], aligned_buffer(SECTOR))


def test_a_missing_file_is_named(tmp_path, reader):
    with pytest.raises(UserError, match=r"cannot open .*none\.bin: No such file"):
        reader.read([Extent(str(tmp_path / "none.bin"), 0, 1, 0)], aligned_buffer(SECTOR))


def test_a_failing_disk_is_named(file, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    reader = DirectReader(threads=2)
    monkeypatch.setattr(os, "preadv", fails)
    monkeypatch.setattr(files.File, "descriptor", -1)  # which compiled code is refused
    with pytest.raises(UserError, match=r"cannot read .*weights\.bin at byte 0: Input/output error"):
        reader.read([Extent(str(file), 0, 1 << 20, 0)], aligned_buffer(1 << 20))
    reader.close()


@pytest.mark.parametrize("refused", ["at the flag", "at the read"])
def test_file_systems_without_direct_reads(file, content, monkeypatch, refused):
    real_fcntl, real_preadv = files.fcntl.fcntl, os.preadv

    def fcntl_refuses(descriptor, command, *flags):
        if flags and flags[0] & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_fcntl(descriptor, command, *flags)

    def preadv_refuses(descriptor, memory, offset):
        if real_fcntl(descriptor, files.fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_preadv(descriptor, memory, offset)

    if refused == "at the flag":
        monkeypatch.setattr(files.fcntl, "fcntl", fcntl_refuses)
    else:
        monkeypatch.setattr(os, "preadv", preadv_refuses)
        monkeypatch.setattr(files.File, "descriptor", -1)
    reader = DirectReader(threads=2, chunk_bytes=64 << 10)
    buffer = aligned_buffer(1 << 20)
    for offset in (0, 100):
        reader.read([Extent(str(file), offset, 1 << 20, 0)], buffer)
        assert bytes_of(buffer) == content[offset : offset + (1 << 20)]
    reader.close()


def test_what_is_begun_comes_while_nobody_waits(file, content, reader):
    buffers = [aligned_buffer(1 << 20) for _ in range(8)]
    extents = [Extent(str(file), 100, 1 << 20, 100)]  # the same ones again: how they are cut is kept
    before = time.perf_counter()
    arrivals = [reader.begin(extents, aligned_buffer((1 << 20) + SECTOR)) for _ in buffers]
    deadline = time.monotonic() + 10
    while not all(arrival.done() for arrival in arrivals) and time.monotonic() < deadline:
        time.sleep(0.001)
    for arrival in arrivals:
        arrival.result()
        began, ended = arrival.span
        assert before <= began < ended <= time.perf_counter()
        assert bytes_of(arrival._buffer[100 : 100 + (1 << 20)]) == content[100 : 100 + (1 << 20)]
    assert reader.begin([], buffers[0]).done()


def test_what_is_given_up_is_over_soon(file):
    reader = DirectReader(threads=1, chunk_bytes=SECTOR)
    arrivals = [reader.begin([Extent(str(file), 0, 3 << 20, 0)], aligned_buffer(3 << 20)) for _ in range(3)]
    for arrival in arrivals:
        arrival.cancel()
    for arrival in arrivals:
        arrival.wait()
    reader.close()
    reader.close()


def test_a_reader_nobody_closed_leaves_no_thread(file):
    before = threading.active_count()
    reader = DirectReader(threads=3)
    reader.begin([Extent(str(file), 0, 1 << 20, 0)], aligned_buffer(1 << 20))
    assert threading.active_count() == before + 3
    del reader
    gc.collect()
    assert threading.active_count() == before


def test_only_bytes_are_accepted(reader):
    with pytest.raises(ValueError, match="uint8"):
        reader.read([], torch.zeros(4))


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
