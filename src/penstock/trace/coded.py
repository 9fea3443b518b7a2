"""A skip trace that stays compressed and is decoded as it is read."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard

from penstock.errors import UserError
from penstock.trace.header import BLOCK_BYTES, BadBlock, Contents, TraceHeader, decode_block, existing_bits, words_at
from penstock.trace.skip_trace import WORD_BITS, SkipBits, TraceShape
from penstock.trace.store import FileStore, Sink, Store

CHUNK_PREFIX = struct.Struct("<II")  # bytes of the payload, its checksum
_STORED = np.dtype("<u8")


@dataclass(frozen=True)
class Chunk:
    """A run of steps that is decoded together; its first step stands alone, the others differ from the one before.

    offset: of its payload in the file. words: uint64 words of a layer, those of the tokens that exist at its last step.
    """

    first_step: int
    steps: int
    words: int
    offset: int
    nbytes: int


def chunk_checksum(first_step: int, payload: bytes) -> int:
    """crc32 of a payload in its place: the same bytes elsewhere in the file do not match."""
    return zlib.crc32(payload, zlib.crc32(first_step.to_bytes(8, "little")))


@dataclass(frozen=True)
class CodedTrace:
    """A SkipTrace in compressed chunks, in a file or in memory; it can be handed to other processes.

    Reading it raises UserError, with the byte where it broke, for a file that is no longer what was written.
    """

    header: TraceHeader
    contents: Contents
    store: Store
    chunks: tuple[Chunk, ...]

    @classmethod
    def open(cls, path: str | Path) -> "CodedTrace":
        """The trace in a file, all of whose checksums hold.

        Raises UserError for a file that is missing, truncated, damaged or none of ours.
        """
        return cls.of(FileStore.of(Path(path)))

    @classmethod
    def of(cls, store: Store) -> "CodedTrace":
        """The trace in a store; see ``open``."""
        try:
            header, contents = decode_block(store.read(0, BLOCK_BYTES))
        except BadBlock as error:
            raise broken(store, error.offset, str(error)) from error
        return cls(header, contents, store, tuple(_checked_chunks(store, header, contents)))

    @property
    def shape(self) -> TraceShape:
        """See SkipTrace."""
        return TraceShape(self.header.prefill_tokens, self.contents.steps, self.header.layers)

    @property
    def coded_bytes(self) -> int:
        """The size of the file."""
        return self.contents.file_bytes

    @property
    def raw_bytes(self) -> int:
        """The size of all bits, uncompressed."""
        return self.shape.steps * self.shape.step_bytes

    @property
    def realised_skip(self) -> float:
        """Skipped tokens as a share of those that existed, over all steps and layers."""
        return self.contents.skipped / max(1, existing_bits(self.shape))

    def windows(self, steps: int, ahead: int = 0) -> Iterator[tuple[int, SkipBits]]:
        """See SkipTrace; each chunk is decoded once in a pass."""
        if steps < 1 or ahead < 0:
            raise ValueError(f"a window of {steps} steps and {ahead} ahead")
        shape, chunks = self.shape, iter(self.chunks)
        rows = min(steps + ahead + self.contents.chunk_steps, shape.steps)
        held = np.zeros((rows, shape.layers, shape.words), np.uint64)
        begin = end = 0  # the steps that are held, from row 0 on
        for first in range(0, shape.steps, steps):
            if 0 < first < end:
                held[: end - first] = held[first - begin : end - begin]
            begin = first
            last = min(first + steps + ahead, shape.steps)
            while end < last:
                chunk = next(chunks)
                self._decode(chunk, held[end - begin : end - begin + chunk.steps])
                end += chunk.steps
            window = held[: last - first]
            window.flags.writeable = False
            yield first, window

    def save(self, path: str | Path) -> "CodedTrace":
        """Write the same trace to a file, in one piece; UserError where that cannot be."""
        sink = Sink(Path(path), BLOCK_BYTES)
        for chunk in self.chunks:
            sink.write(self.store.read(chunk.offset - CHUNK_PREFIX.size, CHUNK_PREFIX.size + chunk.nbytes))
        return CodedTrace(self.header, self.contents, sink.finish(self.store.read(0, BLOCK_BYTES)), self.chunks)

    def broken(self, offset: int, why: str) -> UserError:
        """The refusal of this trace, for what is wrong from a byte of its file on."""
        return broken(self.store, offset, why)

    def _decode(self, chunk: Chunk, bits: SkipBits) -> None:
        """Write a chunk's bits to [its steps, layers, words]."""
        layers, raw_bytes = self.header.layers, 8 * chunk.steps * self.header.layers * chunk.words
        payload = self.store.read(chunk.offset, chunk.nbytes)
        try:
            # asked first: decompressing sets aside whatever the frame says
            told = zstandard.frame_content_size(payload)
            if told != raw_bytes:
                size = f"{told:,} bytes" if told >= 0 else "a size that it does not tell"
                raise self.broken(chunk.offset, f"a chunk of {size} stands for one of {raw_bytes:,}")
            raw = zstandard.ZstdDecompressor().decompress(payload, max_output_size=raw_bytes)
        except zstandard.ZstdError as error:
            raise self.broken(chunk.offset, "a chunk does not decompress") from error
        changes = np.frombuffer(raw, _STORED).reshape(chunk.steps, layers, chunk.words)
        known = bits[:, :, : chunk.words]
        bits[:, :, chunk.words :] = 0
        known[0] = changes[0]
        for step in range(1, chunk.steps):
            np.bitwise_xor(known[step - 1], changes[step], out=known[step])
        wrong = first_beyond(known, self.header.prefill_tokens + chunk.first_step)
        if wrong is not None:
            why = f"step {chunk.first_step + wrong} skips tokens that do not exist yet"
            raise self.broken(chunk.offset, why)


def first_beyond(bits: SkipBits, tokens: int) -> int | None:
    """The first of some steps [steps, layers, words] with a bit for a token that does not exist then.

    tokens: those that exist at the first step; one more does at each later one.
    """
    word = tokens // WORD_BITS
    there = tokens + np.arange(len(bits))[:, None] - WORD_BITS * np.arange(word, bits.shape[2])
    every = ~np.uint64(0)
    beyond = np.where(there < WORD_BITS, every << np.clip(there, 0, WORD_BITS - 1).astype(np.uint64), np.uint64(0))
    wrong = (bits[:, :, word:] & beyond[:, None]).any(axis=(1, 2))
    return int(wrong.argmax()) if wrong.any() else None


def broken(store: Store, offset: int, why: str) -> UserError:
    """The refusal of a trace that is not as it was written."""
    mend = "copy it again or make it anew" if offset else "penstock trace import makes a trace of text"
    return UserError(f"{store.name} is no whole trace, from byte {offset:,} on: {why}; {mend}")


def _checked_chunks(store: Store, header: TraceHeader, contents: Contents) -> Iterator[Chunk]:
    """The chunks, one after another, whose checksums hold; UserError at the first that is not whole."""
    at, checksums, size = BLOCK_BYTES, 0, store.nbytes
    for first in range(0, contents.steps, contents.chunk_steps):
        steps = min(contents.chunk_steps, contents.steps - first)
        prefix = store.read(at, CHUNK_PREFIX.size)
        if len(prefix) < CHUNK_PREFIX.size:
            raise broken(store, size, f"it ends before step {first:,} of {contents.steps:,}")
        nbytes, checksum = CHUNK_PREFIX.unpack(prefix)
        at += CHUNK_PREFIX.size
        if nbytes > contents.file_bytes - at:
            why = f"a chunk of {nbytes:,} bytes does not fit the {contents.file_bytes:,} that the header promises"
            raise broken(store, at - CHUNK_PREFIX.size, why)
        if nbytes > size - at:  # asked first: reading sets aside whatever is asked for
            why = f"it ends within steps {first:,} to {first + steps - 1:,} of {contents.steps:,}"
            raise broken(store, size, why)
        payload = store.read(at, nbytes)
        if chunk_checksum(first, payload) != checksum:
            why = f"steps {first:,} to {first + steps - 1:,} do not match their checksum"
            raise broken(store, at - CHUNK_PREFIX.size, why)
        checksums = zlib.crc32(prefix[4:], checksums)
        yield Chunk(first, steps, words_at(header.prefill_tokens, first + steps - 1), at, nbytes)
        at += nbytes
    if at != contents.file_bytes or size != at:
        raise broken(store, min(at, size), f"{size:,} bytes, where the header promises {contents.file_bytes:,}")
    if checksums != contents.checksum:
        raise broken(store, BLOCK_BYTES, "its chunks are not those of its header")
