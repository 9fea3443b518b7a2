"""Skip traces made of Markov chains: docs/traces.md has the definitions."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from penstock.errors import UserError
from penstock.trace import bits, chains
from penstock.trace.coded import CodedTrace
from penstock.trace.header import TraceHeader
from penstock.trace.skip_trace import WORD_BITS, SkipBits, TraceShape
from penstock.trace.writer import TraceWriter, chunk_steps_for
from penstock.units import format_bytes

Progress = Callable[[int, int], None]  # done, in all

MOST_STEP_BYTES = 1 << 28  # a step's bits are there several times, as chains and as what follows them
SINKS, RECENT = 4, 16
_START, _FOLLOWING = 1, 2  # what keys are drawn for, beside the steps


@dataclass(frozen=True)
class Skipping:
    """How a made trace skips: the chain of one (token, layer), and what never is skipped.

    skip: share of skipped tokens, of those that may be. overlap: share of a read set that the next step reads again.
    correlation: of any two layers' skipping of a token. sinks, recent: first and last tokens that every step reads.
    """

    skip: float
    overlap: float
    correlation: float
    sinks: int
    recent: int

    @property
    def enters(self) -> float:
        """P(read → skip)."""
        return 0.0 if self.skip == 0 else 1.0 if self.skip == 1 else 1 - self.overlap

    @property
    def leaves(self) -> float:
        """P(skip → read)."""
        return 0.0 if self.skip in (0, 1) else (1 - self.overlap) * (1 - self.skip) / self.skip

    def check(self) -> None:
        """Raise UserError unless such a chain exists."""
        for name, value in (("skip", self.skip), ("overlap", self.overlap), ("correlation", self.correlation)):
            if not 0 <= value <= 1:
                raise UserError(f"{name} is {value:g}: give a share from 0 to 1")
        for name, number in (("sinks", self.sinks), ("recent", self.recent)):
            if number < 0:
                raise UserError(f"{name} is {number:,}: give a number of tokens, 0 or more")
        if self.leaves > 1 + 1e-9:
            least = math.ceil(1000 * (1 - self.skip / (1 - self.skip))) / 1000
            raise UserError(
                f"an overlap of {self.overlap:g} exchanges more tokens than a skip level of {self.skip:g} has:"
                f" ask for an overlap of {least:g} or more"
            )


def synth(
    shape: TraceShape,
    skip: float,
    *,
    overlap: float = 0.9,
    sinks: int | None = None,
    recent: int | None = None,
    correlation: float = 0.5,
    seed: int = 0,
    path: Path | None = None,
    progress: Progress | None = None,
) -> CodedTrace:
    """Make a trace, in a file or, without ``path``, in memory; its bits never exist all at once.

    sinks, recent: 4 and 16 unless given, and none where all is skipped. progress: steps done, steps in all. The same
    arguments make the same trace. Raises UserError where no such chain exists.
    """
    some = skip < 1
    rules = Skipping(
        skip,
        overlap,
        correlation,
        (SINKS if some else 0) if sinks is None else sinks,
        (RECENT if some else 0) if recent is None else recent,
    )
    rules.check()
    if shape.prefill_tokens < 0 or shape.steps < 1 or shape.layers < 1:
        raise UserError(
            f"{shape.prefill_tokens:,} prefill tokens, {shape.steps:,} steps, {shape.layers:,} layers:"
            " a trace needs a step and a layer at least"
        )
    if shape.step_bytes > MOST_STEP_BYTES:
        raise UserError(
            f"{shape.layers:,} layers × {shape.tokens:,} tokens are {format_bytes(shape.step_bytes)} of bits at every"
            f" step, and at most {format_bytes(MOST_STEP_BYTES)} are made: ask for fewer tokens or layers"
        )
    if not 0 <= seed < 1 << 63:
        raise UserError(f"seed is {seed}: give a number from 0 to 2^63 − 1")
    header = TraceHeader(shape.prefill_tokens, shape.layers, "synth", parameters=_parameters(rules, seed))
    with TraceWriter(path, header, chunk_steps=chunk_steps_for(shape.layers, shape.words)) as writer:
        for block in _one_ahead(_blocks(shape, rules, seed)):
            for skipped in block:
                writer.append(skipped)
                if progress is not None:
                    progress(writer.steps, shape.steps)
        return writer.close()


def _parameters(rules: Skipping, seed: int) -> dict[str, bool | int | float | str | list[float] | None]:
    return {
        "skip": float(rules.skip),
        "overlap": float(rules.overlap),
        "correlation": float(rules.correlation),
        "sinks": rules.sinks,
        "recent": rules.recent,
        "seed": seed,
    }


def _one_ahead(blocks: Iterator[SkipBits]) -> Iterator[SkipBits]:
    """The same blocks, the next of which is made by a thread while one is used."""
    with ThreadPoolExecutor(1, "penstock-chains") as thread:
        making = thread.submit(next, blocks, None)
        while (block := making.result()) is not None:
            making = thread.submit(next, blocks, None)
            yield block


def _blocks(shape: TraceShape, rules: Skipping, seed: int) -> Iterator[SkipBits]:
    """The bits of a few steps at a time, [steps, layers, words].

    Row 0 of the states is every token's common chain, row 1 + l layer l's own. A (token, layer) follows one of the two
    for good: the common one with probability √correlation. Words begin, stationary, when their first token may be
    skipped, and run for all their tokens; those that may not be skipped yet are masked.
    """
    states = np.zeros((1 + shape.layers, shape.words), np.uint64)
    following = np.zeros((shape.layers, shape.words), np.uint64)
    sinks = ~bits.below(rules.sinks, shape.words)
    most = chunk_steps_for(shape.layers, shape.words)
    running = 0
    for step in range(shape.steps):
        if step % most == 0:
            block = np.zeros((min(most, shape.steps - step), shape.layers, shape.words), np.uint64)
        may_be_skipped = shape.prefill_tokens + step - rules.recent
        words = max(0, -(-may_be_skipped // WORD_BITS))
        chains.advance(states, 0, running, _key(seed, 0, step), rules.enters, 1 - rules.leaves)
        if words > running:
            chains.advance(states, running, words, _key(seed, _START, step), rules.skip, rules.skip)
            shared = math.sqrt(rules.correlation)
            chains.advance(following, running, words, _key(seed, _FOLLOWING, step), shared, shared)
            running = words
        chains.choose(states, following, sinks[:words] & bits.below(may_be_skipped, words), block[step % most])
        if step % most == len(block) - 1:
            yield block


def _key(seed: int, use: int, step: int) -> np.uint64:
    return np.uint64(np.random.SeedSequence((seed, use, step)).generate_state(1, np.uint64)[0])
