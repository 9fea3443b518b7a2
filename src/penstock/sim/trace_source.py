"""Where the skip sets of a combination come from, as a value that processes hand over."""

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from penstock.errors import UserError
from penstock.sim.given import SkipSets, TraceRule
from penstock.trace import bits
from penstock.trace.coded import CodedTrace
from penstock.trace.skip_trace import BitTrace, SkipTrace, TraceShape
from penstock.trace.synth import Skipping, synth


@dataclass(frozen=True)
class TraceSource:
    """A synthetic trace of a level, one from a file, or skip sets as the scenario gives them; made by `source_of`.

    identity: what tells its bits from those of another.
    """

    shape: TraceShape
    rule: TraceRule
    level: float | None
    sets: SkipSets | None
    identity: str

    @property
    def name(self) -> str:
        """What tables call it."""
        if self.sets is not None:
            return "inline"
        if self.rule.file is not None:
            return Path(self.rule.file).name
        return "synthetic"

    def open(self, shared: Path | None = None) -> SkipTrace:
        """The trace itself; UserError where a file is damaged or of another size.

        shared: a directory of processes that need the same traces; the first makes one there, and the others read it.
        """
        if self.sets is not None:
            return bits_of(self.sets, self.shape)
        rule = self.rule
        if rule.file is not None:
            trace = CodedTrace.open(rule.file)
            _check_fits(rule.file, trace.shape, self.shape)
            return trace
        if shared is None:
            return self._made(None)
        told = hashlib.sha256(f"{self.identity} {self.shape}".encode()).hexdigest()
        path = shared / f"{told[:16]}.skip"
        with one_at_a_time(path.with_suffix(".lock")):
            return CodedTrace.open(path) if path.exists() else self._made(path)

    def _made(self, path: Path | None) -> SkipTrace:
        rule = self.rule
        return synth(
            self.shape,
            self.level or 0.0,
            overlap=rule.overlap,
            sinks=rule.sinks,
            recent=rule.recent,
            correlation=rule.correlation,
            seed=rule.seed,
            path=path,
        )


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """What several processes do one after another."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # goes with the file, also where a process is killed
        yield


def source_of(shape: TraceShape, rule: TraceRule, level: float | None, sets: SkipSets | None) -> TraceSource:
    """A source whose parameters and shape are right; UserError for what `open` would refuse, before anything runs."""
    if sets is not None:
        identity = hashlib.sha256(repr(sets).encode()).hexdigest()
    elif rule.file is not None:
        trace = CodedTrace.open(rule.file)
        _check_fits(rule.file, trace.shape, shape)
        identity = f"file {trace.contents.checksum} {trace.contents.skipped}"
    else:
        identity = f"{level} {rule}" if level else "none"
        if level:
            Skipping(level, rule.overlap, rule.correlation, rule.sinks or 0, rule.recent or 0).check()
    return TraceSource(shape, rule, level, sets, identity)


def bits_of(sets: SkipSets, shape: TraceShape) -> BitTrace:
    """Skip sets as a trace held in memory."""
    held = np.zeros((shape.steps, shape.layers, shape.words), np.uint64)
    for step, layers in enumerate(sets):
        for layer, ids in enumerate(layers):
            held[step, layer] = bits.from_tokens(np.array(ids, np.int64), shape.words)
    return BitTrace(shape, held)


def _check_fits(file: str, found: TraceShape, wanted: TraceShape) -> None:
    pairs = (
        ("layers", found.layers, wanted.layers),
        ("prefill_tokens", found.prefill_tokens, wanted.prefill_tokens),
        ("decode_tokens", found.steps, wanted.steps),
    )
    if wrong := [pair for pair in pairs if pair[1] != pair[2]]:
        told = " and ".join(f"{key} is {has:,} in the trace and {want:,} in the scenario" for key, has, want in wrong)
        mend = ",".join(f"{key}={has}" for key, has, _ in wrong)
        raise UserError(f"{file} does not fit the scenario: {told}; use another trace, or --set {mend}")
