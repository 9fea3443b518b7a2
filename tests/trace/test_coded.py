import pickle
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.trace.made import all_bits, coded, file_of, random_bits

from penstock.errors import UserError
from penstock.trace.coded import CHUNK_PREFIX, CodedTrace, chunk_checksum
from penstock.trace.header import BLOCK_BYTES, encode_block
from penstock.trace.skip_trace import TraceShape
from penstock.trace.store import MemoryStore

SHAPE = TraceShape(100, 40, 3)
WHOLE = file_of(coded(random_bits(SHAPE), chunk_steps=16))
FIRST_BYTES = struct.unpack_from("<I", WHOLE, BLOCK_BYTES)[0]

shapes = st.builds(TraceShape, st.integers(0, 150), st.integers(1, 70), st.integers(1, 3))


def read(data: bytes) -> np.ndarray:
    """All bits of a file of these bytes."""
    return all_bits(CodedTrace.of(MemoryStore(data)))


def refused(data: bytes) -> str:
    with pytest.raises(UserError) as caught:
        read(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(1, 20), st.integers(1, 80), st.integers(0, 30), st.sampled_from([0, 0.05, 0.5, 1]))
@example(TraceShape(0, 1, 1), 1, 1, 0, 1)
def test_windows_are_those_of_the_bits(shape: TraceShape, chunk: int, steps: int, ahead: int, skip: float) -> None:
    plain = random_bits(shape, skip)
    made = CodedTrace.of(MemoryStore(file_of(coded(plain, chunk_steps=chunk))))
    assert made.shape == shape
    for _ in range(2):  # any number of times
        expected = list(plain.windows(steps, ahead))
        for (first, window), (expected_first, expected_window) in zip(
            made.windows(steps, ahead), expected, strict=True
        ):
            assert first == expected_first
            assert np.array_equal(window, expected_window)


def test_windows_cannot_be_written_to() -> None:
    _, window = next(coded(random_bits(SHAPE)).windows(5))
    with pytest.raises(ValueError, match="read-only"):
        window[0] = 0


def test_a_window_has_a_step() -> None:
    with pytest.raises(ValueError, match="0 steps"):
        next(coded(random_bits(SHAPE)).windows(0))


def test_it_can_be_saved_opened_and_handed_on(tmp_path: Path) -> None:
    made = coded(random_bits(SHAPE), chunk_steps=16)
    saved = made.save(tmp_path / "a.skip")
    opened = CodedTrace.open(tmp_path / "a.skip")
    assert opened == saved and opened.header == made.header
    assert opened.coded_bytes == (tmp_path / "a.skip").stat().st_size == len(WHOLE)
    assert np.array_equal(all_bits(pickle.loads(pickle.dumps(opened))), random_bits(SHAPE).bits)
    assert [path.name for path in tmp_path.iterdir()] == ["a.skip"]


def test_what_it_says_of_itself() -> None:
    made, plain = coded(random_bits(SHAPE)), random_bits(SHAPE)
    assert made.raw_bytes == plain.bits.nbytes
    skipped, existing = int(np.bitwise_count(plain.bits).sum()), 3 * sum(range(100, 140))
    assert made.contents.skipped == skipped
    assert made.realised_skip == skipped / existing


@settings(deadline=None)
@given(st.integers(0, len(WHOLE) - 1))
@example(BLOCK_BYTES - 1)
@example(BLOCK_BYTES)
@example(BLOCK_BYTES + 4)
@example(BLOCK_BYTES + 8 + FIRST_BYTES)
def test_a_truncated_file_is_refused_where_it_ends(length: int) -> None:
    said = refused(WHOLE[:length])
    # fewer bytes than the mark that a trace begins with are no trace at all
    assert f"from byte {length if length else 0:,} on" in said


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_damaged_byte_is_refused_before_it_is_read(at: int, change: int) -> None:
    data = bytearray(WHOLE)
    data[at] ^= change
    said = refused(bytes(data))
    told = int(said.split("from byte ")[1].split(" on")[0].replace(",", ""))
    assert told <= max(at, BLOCK_BYTES)


@given(st.binary(min_size=1, max_size=50))
def test_more_after_the_end_is_refused(more: bytes) -> None:
    assert f"from byte {len(WHOLE):,} on" in refused(WHOLE + more)


@given(st.binary(max_size=300))
def test_anything_else_is_refused(data: bytes) -> None:
    assert "no whole trace, from byte" in refused(data)


def test_chunks_do_not_change_places() -> None:
    """Each has its own checksum, which also says where it stands."""
    same = coded(random_bits(TraceShape(64 * 9, 32, 1)), chunk_steps=16)
    data, (first, second) = file_of(same), same.chunks
    parts = [data[chunk.offset - CHUNK_PREFIX.size : chunk.offset + chunk.nbytes] for chunk in (second, first)]
    assert "do not match their checksum" in refused(data[:BLOCK_BYTES] + b"".join(parts))


def test_chunks_of_another_trace_are_refused() -> None:
    other = file_of(coded(random_bits(SHAPE, seed=1), chunk_steps=16))
    head = CodedTrace.of(MemoryStore(WHOLE))
    contents = replace(head.contents, file_bytes=len(other))
    assert "not those of its header" in refused(encode_block(head.header, contents) + other[BLOCK_BYTES:])


def lying(payloads: list[bytes], **changes: int) -> bytes:
    """A file whose checksums all hold, of chunks of 16 steps."""
    head, body, checksums = CodedTrace.of(MemoryStore(WHOLE)), b"", 0
    for number, payload in enumerate(payloads):
        prefix = CHUNK_PREFIX.pack(len(payload), chunk_checksum(16 * number, payload))
        body += prefix + payload
        checksums = zlib.crc32(prefix[4:], checksums)
    contents = replace(
        head.contents, **{"file_bytes": BLOCK_BYTES + len(body), "checksum": checksums, "skipped": 0, **changes}
    )
    return encode_block(head.header, contents) + body


def squeezed(words: list[int], nbytes: int) -> bytes:
    return zstandard.ZstdCompressor().compress(np.array(words, "<u8").tobytes().ljust(nbytes, b"\0"))


FIRST = 16 * 3 * 2 * 8  # bytes of the first chunk: 16 steps, 3 layers, 2 words
REST = [squeezed([], 16 * 3 * 3 * 8), squeezed([], 8 * 3 * 3 * 8)]  # tokens from 128 on exist there


def test_a_file_that_does_not_lie_is_read() -> None:
    assert not read(lying([squeezed([], FIRST), *REST])).any()


@pytest.mark.parametrize(
    ("chunk", "why"),
    [
        (squeezed([], FIRST + 8), "a chunk of 776 bytes stands for one of 768"),
        (squeezed([], 0), "a chunk of 0 bytes"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(bytes(FIRST)), "a size that it does not tell"),
        (b"no zstd", "does not decompress"),
        (squeezed([], FIRST)[:-3], "does not decompress"),
        (b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 7 + b"\x0f" + b"\0" * 9, "stands for one of 768"),
        (squeezed([0, 1 << 36], FIRST), "step 0 skips tokens that do not exist yet"),
    ],
)
def test_a_chunk_that_lies_is_refused_with_its_place(chunk: bytes, why: str) -> None:
    said = refused(lying([chunk, *REST]))
    assert why in said and f"from byte {BLOCK_BYTES + 8:,} on" in said


def test_too_many_and_too_few_chunks_are_refused() -> None:
    chunks = [squeezed([], FIRST), *REST]
    assert "promises" in refused(lying([*chunks, chunks[0]]))
    assert "ends before step 32 of 40" in refused(lying(chunks[:2]))


def test_a_length_beyond_the_file_is_refused() -> None:
    data = bytearray(WHOLE)
    data[BLOCK_BYTES : BLOCK_BYTES + 4] = b"\xff" * 4
    assert "a chunk of 4,294,967,295 bytes does not fit" in refused(bytes(data))


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.skip", tmp_path):
        with pytest.raises(UserError, match="cannot be read") as caught:
            CodedTrace.open(path)
        assert "\n" not in str(caught.value)


def test_a_length_that_a_header_promises_is_not_set_aside() -> None:
    class Counted(MemoryStore):
        def read(self, offset: int, nbytes: int) -> bytes:
            assert nbytes <= len(WHOLE)
            return super().read(offset, nbytes)

    data = bytearray(lying([squeezed([], FIRST), *REST], file_bytes=1 << 39))
    data[BLOCK_BYTES : BLOCK_BYTES + 4] = b"\xff" * 4
    with pytest.raises(UserError, match="it ends within steps 0 to 15 of 40"):
        CodedTrace.of(Counted(bytes(data)))


def test_a_file_that_changes_is_not_read_on(tmp_path: Path) -> None:
    path = tmp_path / "a.skip"
    path.write_bytes(WHOLE)
    trace = CodedTrace.open(path)
    coded(random_bits(SHAPE, seed=1), chunk_steps=16).save(path)
    with pytest.raises(UserError, match="written to while it was read"):
        all_bits(trace)
