import gzip
import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from penstock.errors import UserError
from penstock.jobs.lines import Line, read_lines


def read(tmp_path: Path, data: bytes, longest: int = 100) -> list[Line]:
    (tmp_path / "job.jsonl").write_bytes(data)
    return list(read_lines(tmp_path / "job.jsonl", longest))


def test_blank_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    found = read(tmp_path, b"\xef\xbb\xbffirst\r\n\n \t\r\n\xff second \nthird")
    assert found == [Line(1, b"first"), Line(4, b"\xff second "), Line(5, b"third")]
    assert read(tmp_path, b"") == read(tmp_path, b"\n\n") == read(tmp_path, b"\xef\xbb\xbf") == []


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_that_is_too_long_is_a_fault_and_the_next_is_read(tmp_path: Path, end: bytes) -> None:
    found = read(tmp_path, b"a" * 100 + b"\n" + b"b" * 101 + b"\n" + b"c" * 300_000 + b"\nd\n" + b"e" * 100 + end)
    assert found[0] == Line(1, b"a" * 100)
    assert found[1] == Line(2, fault="the line is 101 bytes long: at most 100 are read")
    assert found[2] == Line(3, fault="the line is 300,000 bytes long: at most 100 are read")
    assert found[3:] == [Line(4, b"d"), Line(5, b"e" * 100)]
    assert read(tmp_path, b"f" * 101)[0].fault is not None


def test_gzip_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    lines = [f"line {number}".encode() for number in range(1, 5001)]
    halves = (
        gzip.compress(b"\n".join(lines[:2000]) + b"\n") + gzip.compress(b"") + gzip.compress(b"\n".join(lines[2000:]))
    )
    for data in (halves, halves + bytes(512)):
        assert [line.data for line in read(tmp_path, data)] == lines


def test_every_torn_or_damaged_gzip_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(b"some text\n" * 30)
    for size in range(4, len(whole)):
        with pytest.raises(UserError, match=r"job\.jsonl is not a whole gzip file"):
            read(tmp_path, whole[:size])
    for damaged in (whole + b"more", whole[:-6] + b"\1" + whole[-5:]):
        with pytest.raises(UserError, match=r"job\.jsonl is not a whole gzip file"):
            read(tmp_path, damaged)


# a frame of one block that is stored as it is, and a frame to be skipped, as parallel compressors write it first
ZSTD = bytes.fromhex("28b52ffd200e710000") + b"first\n\nsecond\n"
SKIPPED = bytes.fromhex("502a4d1804000000") + bytes(4)
HAS_ZSTD = any(importlib.util.find_spec(name) for name in ("compression", "zstandard"))


@pytest.mark.skipif(not HAS_ZSTD, reason="nothing here reads zstd")
def test_zstd(tmp_path: Path) -> None:
    for data in (ZSTD, SKIPPED + ZSTD):
        assert read(tmp_path, data) == [Line(1, b"first"), Line(3, b"second")]
    with pytest.raises(UserError, match=r"job\.jsonl is not a whole zstd file"):
        read(tmp_path, ZSTD[:-1])


@pytest.mark.skipif(HAS_ZSTD, reason="zstd can be read here")
@pytest.mark.parametrize("data", [ZSTD, SKIPPED + ZSTD])
def test_without_zstd_its_package_is_named(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match=r"job\.jsonl is compressed with zstd: pip install zstandard"):
        read(tmp_path, data)


class FakeFrame:
    """What zstandard hands out, for frames of zstd's first bytes, a length and text as it is."""

    def __init__(self) -> None:
        self.eof, self.unused_data, self._got = False, b"", b""

    def decompress(self, data: bytes) -> bytes:
        if self.eof or (self._got + data)[:4] != ZSTD[:4]:
            raise ValueError("not a frame")
        before, self._got = len(self._got), self._got + data
        size = 5 + self._got[4]
        self.eof, self.unused_data = len(self._got) >= size, self._got[size:]
        return self._got[max(before, 5) : size]


def test_zstandard_is_asked_frame_by_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = SimpleNamespace(decompressobj=FakeFrame)
    fake = SimpleNamespace(ZstdDecompressor=lambda: maker, ZstdError=ValueError)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "zstandard", fake)
    texts = [f"line {number:<200}\n".encode() for number in range(100)]
    frames = [ZSTD[:4] + bytes([len(text)]) + text for text in texts]
    assert b"".join(line.data + b"\n" for line in read(tmp_path, b"".join(frames), 300)) == b"".join(texts)
    for torn in (b"".join(frames)[:-1], b"".join(frames) + b"more than this"):
        with pytest.raises(UserError, match=r"job\.jsonl is not a whole zstd file"):
            read(tmp_path, torn, 300)


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        list(read_lines(tmp_path / "missing"))
    with pytest.raises(UserError, match="is a directory"):
        list(read_lines(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="reads its input twice"):
        list(read_lines(tmp_path / "pipe"))
