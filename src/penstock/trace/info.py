"""What a trace holds: how much it skips, how alike its read sets are, and how its layers differ."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.trace import bits
from penstock.trace.coded import CodedTrace
from penstock.trace.header import BLOCK_BYTES, TraceHeader
from penstock.trace.skip_trace import TraceShape

Progress = Callable[[int, int], None]
Counts = NDArray[np.int64]

_WINDOW_STEPS, _WINDOW_BYTES = 64, 8 << 20  # at most: a header may promise steps of 256 MiB


@dataclass(frozen=True, eq=False)
class TraceInfo:
    """Counts of a trace, and what follows from them.

    skipped: [steps, layers], tokens that a step skips. stayed: [steps − 1, layers], tokens of a step's read set that
    the next one reads too. shared: [steps, layers − 1], tokens that a layer and the next one both skip.
    """

    header: TraceHeader
    shape: TraceShape
    raw_bytes: int
    coded_bytes: int
    skipped: Counts
    stayed: Counts
    shared: Counts

    @property
    def existing(self) -> Counts:
        """[steps, 1]: tokens that exist at each step."""
        return (self.shape.prefill_tokens + np.arange(self.shape.steps, dtype=np.int64))[:, None]

    @property
    def skip_asked(self) -> float | None:
        """The skip level that the trace was made for, if it was."""
        asked = self.header.parameters.get("skip")
        return float(asked) if isinstance(asked, int | float) else None

    @property
    def skip(self) -> float:
        """Skipped tokens as a share of those that existed."""
        return _ratio(self.skipped.sum(), self.existing.sum() * self.shape.layers) or 0.0

    @property
    def skip_of_layers(self) -> list[float]:
        """The same for each layer."""
        whole = self.existing.sum()
        return [_ratio(count, whole) or 0.0 for count in self.skipped.sum(axis=0)]

    @property
    def overlap(self) -> float | None:
        """Share of all read tokens that the next step reads again; None where nothing is read before the last step."""
        return _ratio(self.stayed.sum(), self._read_before_last.sum())

    @property
    def overlap_of_layers(self) -> list[float | None]:
        """The same for each layer."""
        read = self._read_before_last.sum(axis=0)
        return [_ratio(stayed, whole) for stayed, whole in zip(self.stayed.sum(axis=0), read, strict=True)]

    @property
    def correlation(self) -> float | None:
        """Between neighbouring layers' skipping, of all tokens that exist; None where none differs."""
        left, right = self.skipped[:, :-1].astype(float), self.skipped[:, 1:].astype(float)
        tokens = np.maximum(self.existing, 1).astype(float)
        together = float((self.shared - left * right / tokens).sum())
        apart = float(np.sqrt(left * (1 - left / tokens) * right * (1 - right / tokens)).sum())
        return together / apart if apart > 0 else None

    @property
    def skip_of_steps(self) -> NDArray[np.float64]:
        """[steps, layers]: share of the tokens that exist."""
        share: NDArray[np.float64] = self.skipped / np.maximum(self.existing, 1)
        return share

    @property
    def overlap_of_steps(self) -> NDArray[np.float64]:
        """[steps − 1, layers]; NaN where a step reads nothing."""
        read = self._read_before_last
        share: NDArray[np.float64] = np.where(read > 0, self.stayed / np.maximum(read, 1), np.nan)
        return share

    @property
    def _read_before_last(self) -> Counts:
        read: Counts = (self.existing - self.skipped)[:-1]
        return read

    def to_json(self) -> dict[str, Any]:
        """Plain values: shares from 0 to 1, sizes in bytes."""
        header = self.header
        return {
            "model": header.model,
            "prompt_hash": header.prompt_hash,
            "rule": header.rule,
            "parameters": dict(header.parameters),
            "prefill_tokens": self.shape.prefill_tokens,
            "steps": self.shape.steps,
            "layers": self.shape.layers,
            "skip_asked": self.skip_asked,
            "skip": self.skip,
            "skip_of_layers": self.skip_of_layers,
            "overlap": self.overlap,
            "overlap_of_layers": self.overlap_of_layers,
            "correlation": self.correlation,
            "raw_bytes": self.raw_bytes,
            "coded_bytes": self.coded_bytes,
        }


def inspect(trace: CodedTrace, progress: Progress | None = None) -> TraceInfo:
    """Count a trace in one pass.

    progress: steps done, steps in all. Raises UserError for a trace that breaks, or whose header counts otherwise.
    """
    shape = trace.shape
    skipped = np.zeros((shape.steps, shape.layers), np.int64)
    stayed = np.zeros((shape.steps - 1, shape.layers), np.int64)
    shared = np.zeros((shape.steps, shape.layers - 1), np.int64)
    steps = min(_WINDOW_STEPS, shape.steps_in(_WINDOW_BYTES))
    for first, window in trace.windows(steps, ahead=1):
        now = window[:steps]
        skipped[first : first + len(now)] = bits.counts(now)
        shared[first : first + len(now)] = bits.counts(now[:, 1:] & now[:, :-1])
        end = first + len(window)
        stayed[first : end - 1] = bits.read_again(window, shape.prefill_tokens + np.arange(first, end))
        if progress is not None:
            progress(first + len(now), shape.steps)
    if (total := int(skipped.sum())) != trace.contents.skipped:
        why = f"its header counts {trace.contents.skipped:,} skipped tokens, and {total:,} are"
        raise trace.broken(BLOCK_BYTES, why)
    return TraceInfo(trace.header, shape, trace.raw_bytes, trace.coded_bytes, skipped, stayed, shared)


def _ratio(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole else None
