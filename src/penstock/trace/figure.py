"""A trace drawn: what each layer skips over time, and how much of a read set the next step reads again."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from penstock.drawing import save, style
from penstock.trace.info import TraceInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINE = "#0072B2"
_INCHES = (10.0, 7.0)
_MOST_COLUMNS = 256  # more steps than these share a column


def draw(info: TraceInfo, name: str, path: Path) -> None:
    """Write the picture of a trace: ``.svg``, or ``.png`` for any other ending; UserError where that cannot be."""
    save(figure(info, name), path)


def figure(info: TraceInfo, name: str) -> "Figure":
    """Two panels over decode steps: skipping of each layer, and overlap of consecutive read sets."""
    from matplotlib.figure import Figure

    shape = info.shape
    with style():
        drawn = Figure(figsize=_INCHES, layout="constrained")
        skipping, overlap = drawn.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        sizes = f"{shape.steps:,} steps × {shape.layers:,} layers after {shape.prefill_tokens:,} tokens"
        drawn.suptitle(f"{name} · {info.header.rule} · {sizes}", x=0.01, ha="left", fontsize=10)
        _skipping(skipping, info)
        _overlap(overlap, info)
    return drawn


def _skipping(axes: "Axes", info: TraceInfo) -> None:
    """A map of layers by steps."""
    from matplotlib.ticker import MaxNLocator

    shape = info.shape
    shares = _columns(info.skip_of_steps)
    picture = axes.imshow(
        100 * shares.T,
        aspect="auto",
        origin="lower",
        cmap="viridis",
        interpolation="nearest",
        extent=(0, shape.steps, -0.5, shape.layers - 0.5),
    )
    bar = axes.figure.colorbar(picture, ax=axes, pad=0.01)
    bar.set_label("% of tokens skipped")
    bar.outline.set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("layer")
    asked = "" if info.skip_asked is None else f" ({100 * info.skip_asked:.1f} % asked)"
    axes.set_title(f"What does each layer skip? {100 * info.skip:.1f} % in all{asked}", loc="left")


def _overlap(axes: "Axes", info: TraceInfo) -> None:
    """The mean over layers, in the band from the least to the most."""
    axes.set_xlabel("decode step")
    axes.set_ylabel("% read again")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlim(0, info.shape.steps)
    if info.overlap is None:
        axes.set_title("How much is read again by the next step? Nothing is read twice", loc="left")
        return
    shares = 100 * _columns(info.overlap_of_steps)
    reads = np.isfinite(shares).any(axis=1)
    edges = np.linspace(0, info.shape.steps - 1, len(shares) + 1)
    middles = ((edges[1:] + edges[:-1]) / 2)[reads]
    shares = shares[reads]
    low, high = np.nanmin(shares, axis=1), np.nanmax(shares, axis=1)
    axes.fill_between(middles, low, high, color=_LINE, alpha=0.2, linewidth=0, label="least to most of a layer")
    axes.plot(middles, np.nanmean(shares, axis=1), color=_LINE, linewidth=1.5, label="mean over layers")
    span = max(float((high - low).max()), 1.0)
    axes.set_ylim(max(0.0, float(low.min()) - span / 4), min(100.0, float(high.max()) + span / 4) + 0.01)
    axes.grid(True, axis="y", color="#EEEEEE")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, fontsize=9)
    axes.set_title(f"How much is read again by the next step? {100 * info.overlap:.1f} %", loc="left")


def _columns(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """[steps, layers] as at most _MOST_COLUMNS means over runs of steps; NaN only where a run has nothing else."""
    columns = min(len(shares), _MOST_COLUMNS)
    starts = np.arange(columns) * len(shares) // columns
    known = ~np.isnan(shares)
    sums = np.add.reduceat(np.where(known, shares, 0.0), starts, axis=0)
    numbers = np.add.reduceat(known.astype(float), starts, axis=0)
    means: NDArray[np.float64] = np.where(numbers > 0, sums / np.maximum(numbers, 1), np.nan)
    return means
