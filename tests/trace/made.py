"""Small traces for tests."""

import numpy as np

from penstock.trace import bits
from penstock.trace.coded import CodedTrace
from penstock.trace.header import TraceHeader
from penstock.trace.skip_trace import BitTrace, TraceShape
from penstock.trace.store import MemoryStore
from penstock.trace.writer import TraceWriter


def random_bits(shape: TraceShape, skip: float = 0.3, seed: int = 0) -> BitTrace:
    """A trace whose tokens are skipped each by itself."""
    drawn = np.random.default_rng(seed).random((shape.steps, shape.layers, shape.words * 64)) < skip
    drawn &= np.arange(shape.words * 64) < (shape.prefill_tokens + np.arange(shape.steps))[:, None, None]
    return BitTrace(shape, np.packbits(drawn, axis=2, bitorder="little").view("<u8").astype(np.uint64))


def coded(trace: BitTrace, *, chunk_steps: int | None = None, rule: str = "test") -> CodedTrace:
    """The same trace as the writer makes it, in memory."""
    header = TraceHeader(trace.shape.prefill_tokens, trace.shape.layers, rule)
    with TraceWriter(None, header, chunk_steps=chunk_steps) as writer:
        for step in trace.bits:
            writer.append(step)
        return writer.close()


def all_bits(trace: CodedTrace) -> np.ndarray:
    """[steps, layers, words]."""
    return next(trace.windows(trace.shape.steps))[1].copy()


def flags(trace: CodedTrace) -> np.ndarray:
    """[steps, layers, tokens] of bool: skipped or not."""
    unpacked = np.unpackbits(all_bits(trace).astype("<u8").view(np.uint8), axis=2, bitorder="little")
    return unpacked[:, :, : trace.shape.tokens].astype(bool)


def file_of(trace: CodedTrace) -> bytes:
    """The bytes that ``save`` would write."""
    assert isinstance(trace.store, MemoryStore)
    return trace.store.data


def step_of(tokens: list[int], layers: int, words: int) -> np.ndarray:
    """A step that skips these tokens at every layer."""
    return np.repeat(bits.from_tokens(np.array(tokens, np.int64), words)[None], layers, axis=0)
