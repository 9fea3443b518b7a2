"""Writes a trace, step by step, in chunks of what changed."""

import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import zstandard

from penstock.errors import UserError
from penstock.trace.bits import count
from penstock.trace.coded import CHUNK_PREFIX, Chunk, CodedTrace, chunk_checksum, first_beyond
from penstock.trace.header import (
    BLOCK_BYTES,
    LARGEST_BYTES,
    Contents,
    Parameter,
    TraceHeader,
    encode_block,
    words_at,
)
from penstock.trace.skip_trace import WORD_BITS, SkipBits
from penstock.trace.store import Sink
from penstock.units import format_bytes

CHUNK_BYTES = 4 << 20  # of bits: what a cache holds while a chunk is decoded
MOST_CHUNK_STEPS = 64
_STORED = np.dtype("<u8")


class TraceWriter:
    """A trace that grows by a step at a time; how many there will be need not be known.

    ::

        with TraceWriter(Path("run.skip"), TraceHeader(512, 30, "top-k", model="demo")) as writer:
            for bits in steps:  # uint64 [layers, words]: bit t % 64 of word t // 64 is set where token t is skipped
                writer.append(bits)
            trace = writer.close(mass_kept=0.98)

    Without a path the trace is kept in memory, compressed. With one, it lies under a temporary name until ``close``;
    leaving the block without ``close`` (an exception) leaves nothing behind. UserError where the disk does not take it.
    """

    def __init__(self, path: Path | None, header: TraceHeader, *, chunk_steps: int | None = None) -> None:
        _check_size(header.layers, words_at(header.prefill_tokens, 0), 1)
        self.header = header
        self.steps = 0
        self._chunk_steps = chunk_steps or chunk_steps_for(header.layers, words_at(header.prefill_tokens, 0))
        self._chunks: list[Chunk] = []
        self._checksums = self._skipped = 0
        self._bits: SkipBits | None = None
        self._compressing: Future[tuple[bytes, int]] | None = None
        self._thread = ThreadPoolExecutor(1, "penstock-trace")
        self._sink = Sink(path, BLOCK_BYTES)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.discard()

    @property
    def words(self) -> int:
        """uint64 words that hold the tokens which exist at the next step."""
        return words_at(self.header.prefill_tokens, self.steps)

    def append(self, bits: SkipBits) -> None:
        """Add a step: uint64 [layers, words], in as many words as hold the tokens that exist, or more.

        Token t exists at step i where t < prefill_tokens + i. ValueError for another shape, or a bit beyond.
        """
        tokens = self.header.prefill_tokens + self.steps
        words = self.words
        if bits.dtype != np.uint64 or bits.ndim != 2 or len(bits) != self.header.layers or bits.shape[1] * 64 < tokens:
            raise ValueError(f"{bits.dtype} {bits.shape} for uint64 [{self.header.layers} layers, {words} words]")
        if bits[:, words:].any() or first_beyond(bits[None, :, :words], tokens) is not None:
            raise ValueError(f"step {self.steps} skips tokens that do not exist: only {tokens} do")
        if self._bits is None:
            self._bits = self._room()
        row = self._bits[self.steps % self._chunk_steps]
        row[:, :words] = bits[:, :words]
        self.steps += 1
        if self.steps % self._chunk_steps == 0:
            self._flush()

    def close(self, **parameters: Parameter) -> CodedTrace:
        """End the trace and give it its name; parameters: what is only known now of the rule, added to the header's.

        UserError for a trace without steps.
        """
        if not self.steps:
            self.discard()
            raise UserError("a trace needs at least one step, and none was written")
        if self.steps % self._chunk_steps:
            self._flush()
        self._collect()
        self._thread.shutdown()
        self.header = replace(self.header, parameters={**self.header.parameters, **parameters})
        contents = Contents(self.steps, self._chunk_steps, self._skipped, self._sink.nbytes, self._checksums)
        store = self._sink.finish(encode_block(self.header, contents))
        self._closed = True
        return CodedTrace(self.header, contents, store, tuple(self._chunks))

    def discard(self) -> None:
        """Leave nothing behind, unless it is closed."""
        if not self._closed:
            self._closed = True
            self._thread.shutdown()
            self._sink.discard()

    def _room(self) -> SkipBits:
        """Bits of the chunk that begins: zeros beyond what each step writes."""
        end = self.steps + self._chunk_steps
        _check_size(self.header.layers, words_at(self.header.prefill_tokens, end), self._chunk_steps)
        words = words_at(self.header.prefill_tokens, end - 1)
        return np.zeros((self._chunk_steps, self.header.layers, words), np.uint64)

    def _flush(self) -> None:
        """Have the chunk that is full compressed beside what makes the next, and write the one before."""
        assert self._bits is not None
        first = (self.steps - 1) // self._chunk_steps * self._chunk_steps
        bits = self._bits[: self.steps - first, :, : words_at(self.header.prefill_tokens, self.steps - 1)]
        self._bits = None
        self._collect()
        self._chunks.append(Chunk(first, len(bits), bits.shape[2], offset=0, nbytes=0))
        self._compressing = self._thread.submit(_compressed, bits)

    def _collect(self) -> None:
        """Write the chunk that is being compressed, if one is."""
        if self._compressing is None:
            return
        payload, skipped = self._compressing.result()
        self._compressing = None
        chunk = self._chunks[-1]
        prefix = CHUNK_PREFIX.pack(len(payload), chunk_checksum(chunk.first_step, payload))
        self._sink.write(prefix)
        self._chunks[-1] = replace(chunk, offset=self._sink.nbytes, nbytes=len(payload))
        self._sink.write(payload)
        self._checksums = zlib.crc32(prefix[4:], self._checksums)
        self._skipped += skipped


def chunk_steps_for(layers: int, words: int) -> int:
    """Steps of a chunk for rows of this size."""
    return max(1, min(MOST_CHUNK_STEPS, CHUNK_BYTES // (8 * layers * words)))


def _compressed(bits: SkipBits) -> tuple[bytes, int]:
    """A chunk's payload and how many bits are set; bits: [steps, layers, words]."""
    changes = np.empty(bits.shape, _STORED)
    changes[0] = bits[0]
    np.bitwise_xor(bits[1:], bits[:-1], out=changes[1:])
    # Changes are as good as random: what helps is the coding of bytes, and a search for repeats only costs.
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=17, hash_log=6, min_match=7)
    return zstandard.ZstdCompressor(compression_params=settings).compress(changes.data), count(bits)


def _check_size(layers: int, words: int, steps: int) -> None:
    """Raise UserError where a chunk would be larger than those that are read."""
    nbytes = 8 * steps * layers * words
    if nbytes > LARGEST_BYTES:
        times = f"{steps:,} steps × " if steps > 1 else ""
        raise UserError(
            f"{times}{layers:,} layers × {words * WORD_BITS:,} tokens are {format_bytes(nbytes)} of bits, and a trace "
            f"holds {format_bytes(LARGEST_BYTES)} at once: take fewer tokens or layers"
        )
