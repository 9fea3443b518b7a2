import errno
import gc
import os
import threading
import time
import weakref

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import UserError
from penstock.memory import direct, files
from penstock.memory.buffers import aligned_buffer
from penstock.memory.direct import DirectReader
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
    buffers = [aligned_buffer((1 << 20) + SECTOR) for _ in range(8)]
    extents = [Extent(str(file), 100, 1 << 20, 100)]  # the same ones again: how they are cut is kept
    before = time.perf_counter()
    arrivals = [reader.begin(extents, buffer) for buffer in buffers]
    deadline = time.monotonic() + 10
    while not all(arrival.done() for arrival in arrivals) and time.monotonic() < deadline:
        time.sleep(0.001)
    for arrival, buffer in zip(arrivals, buffers, strict=True):
        arrival.result()
        began, ended = arrival.span
        assert before <= began < ended <= time.perf_counter()
        assert bytes_of(buffer[100 : 100 + (1 << 20)]) == content[100 : 100 + (1 << 20)]
    assert reader.begin([], buffers[0]).done()


def test_what_is_given_up_does_not_come(file):
    reader = DirectReader(threads=1, chunk_bytes=SECTOR)
    buffers = [aligned_buffer(3 << 20).zero_() for _ in range(6)]
    arrivals = [reader.begin([Extent(str(file), 0, 3 << 20, 0)], buffer) for buffer in buffers]
    for arrival in reversed(arrivals):
        arrival.cancel()
    for arrival in arrivals:
        with pytest.raises(RuntimeError, match="given up"):
            arrival.result()
        assert arrival.done()
    assert not buffers[-1].any(), "768 reads of one thread take longer than giving them up"
    reader.close()
    reader.close()


def test_a_buffer_that_everybody_let_go_of_is_kept_while_it_is_written(file):
    reader = DirectReader(threads=1, chunk_bytes=SECTOR)
    buffers = [aligned_buffer(3 << 20) for _ in range(10)]
    kept = [weakref.ref(buffer) for buffer in buffers]
    for buffer in buffers:
        reader.begin([Extent(str(file), 0, 3 << 20, 0)], buffer)
    del buffer
    buffers.clear()
    assert kept[-1]() is not None
    reader.close()
    del reader
    gc.collect()
    assert not any(buffer() for buffer in kept)


def test_what_is_refused_is_read_once_more_alone(file, content, monkeypatch):
    monkeypatch.setattr(files.File, "descriptor", -1)
    reader = DirectReader(threads=1)
    buffer = aligned_buffer(1 << 20)
    arrival = reader.begin([Extent(str(file), 0, 1 << 20, 0)], buffer)
    arrival.result()
    assert bytes_of(buffer) == content[: 1 << 20]
    buffer.zero_()  # whoever holds it may not find it changed
    arrival.result()
    assert not buffer.any()
    reader.close()


def test_bytes_that_the_buffer_has_no_room_for_are_refused(file, reader):
    for extent in (Extent(str(file), 0, SECTOR, 1), Extent(str(file), 0, 2 * SECTOR, 0)):
        with pytest.raises(ValueError, match="outside its buffer of 4,096 bytes"):
            reader.begin([extent], aligned_buffer(SECTOR))


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
