import json
import zlib
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.trace.header import (
    BLOCK_BYTES,
    MAGIC,
    PREFIX,
    VERSION,
    BadBlock,
    Contents,
    TraceHeader,
    decode_block,
    encode_block,
    existing_bits,
    words_at,
)
from penstock.trace.skip_trace import TraceShape

HEADER = TraceHeader(512, 30, "top-k", "demo", "5e1f", {"k": 256, "kept": 0.98, "by": [0.5, 1.0], "note": None})
CONTENTS = Contents(steps=256, chunk_steps=64, skipped=1234, file_bytes=99_999, checksum=7)


def block_of(**changes: object) -> bytes:
    """A block whose checksum holds, whatever it says: ``header.layers`` is given as ``header_layers``."""
    told = {"header": asdict(HEADER), "contents": asdict(CONTENTS)}
    for name, value in changes.items():
        part, key = name.split("_", 1)
        told[part][key] = value
    text = json.dumps(told).encode().ljust(BLOCK_BYTES - PREFIX.size)
    return PREFIX.pack(MAGIC, VERSION, zlib.crc32(text)) + text


def refused(block: bytes) -> BadBlock:
    with pytest.raises(BadBlock) as caught:
        decode_block(block)
    assert "\n" not in str(caught.value)
    return caught.value


@given(
    st.builds(
        TraceHeader,
        prefill_tokens=st.integers(0, 10**5),
        layers=st.integers(1, 200),
        rule=st.text(max_size=20),
        model=st.text(max_size=50),
        prompt_hash=st.text(max_size=50),
        parameters=st.dictionaries(
            st.text(max_size=9),
            st.none()
            | st.booleans()
            | st.integers(-(2**70), 2**70)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(max_size=9),
            max_size=5,
        ),
    )
)
def test_what_is_written_is_read(header: TraceHeader) -> None:
    assert decode_block(encode_block(header, CONTENTS)) == (header, CONTENTS)


def test_a_block_has_one_size() -> None:
    assert len(encode_block(HEADER, CONTENTS)) == BLOCK_BYTES
    with pytest.raises(ValueError, match="16,368 is the most"):
        encode_block(replace(HEADER, model="m" * BLOCK_BYTES), CONTENTS)


@pytest.mark.parametrize(
    ("block", "offset", "why"),
    [
        (b"", 0, "does not begin"),
        (b"n,l,s,[ids]" * 2000, 0, "does not begin"),
        (MAGIC[:3], 3, "ends within its header"),
        (block_of()[:-1], BLOCK_BYTES - 1, "ends within its header"),
        (block_of()[:8] + b"\x02" + block_of()[9:], 8, "version 2"),
        (block_of()[:-1] + b"!", PREFIX.size, "checksum"),
    ],
)
def test_damage_is_told_with_its_place(block: bytes, offset: int, why: str) -> None:
    error = refused(block)
    assert error.offset == offset and why in str(error)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"contents_steps": 0}, "contents.steps"),
        ({"contents_steps": 1 << 50}, "contents.steps"),
        ({"contents_steps": 1 << 38}, "no chunk exceeds 256 MiB"),
        ({"contents_chunk_steps": 1 << 38, "contents_steps": 1 << 20}, "no chunk exceeds 256 MiB"),
        ({"header_layers": 1 << 34}, "no chunk exceeds 256 MiB"),
        ({"header_layers": "30"}, "header.layers"),
        ({"header_prefill_tokens": -1}, "header.prefill_tokens"),
        ({"header_extra": 1}, "header.extra"),
        ({"contents_skipped": 30 * (256 * 512 + 255 * 128) + 1}, "skipped tokens in all"),
        ({"contents_checksum": 1 << 32}, "contents.checksum"),
    ],
)
def test_a_header_that_cannot_be_true_is_refused(change: dict[str, object], why: str) -> None:
    assert why in str(refused(block_of(**change)))


def test_all_tokens_that_exist_may_be_skipped() -> None:
    most = existing_bits(TraceShape(512, 256, 30))
    assert most == 30 * sum(range(512, 512 + 256))
    assert decode_block(block_of(contents_skipped=most))[1].skipped == most


@pytest.mark.parametrize(("prefill", "step", "words"), [(0, 0, 1), (64, 0, 1), (64, 1, 2), (0, 128, 2), (0, 129, 3)])
def test_words_hold_the_tokens_that_exist(prefill: int, step: int, words: int) -> None:
    assert words_at(prefill, step) == words
