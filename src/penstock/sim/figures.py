"""The pictures of a study: which pair is fastest, and what HBM served and held over the steps.

Every figure takes part of a results table (`penstock.sim.table`), a heading that says what the rows are of, and the
palette of the whole study. It explains itself where it is pasted.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from penstock.sim.figure_style import Palette, Theme
from penstock.sim.readable import plain
from penstock.sim.row import Curve

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Panels = Sequence[tuple[str, pl.DataFrame]]  # a title, and the rows that belong under it
Quantity = Literal["alpha", "hbm_bytes"]

SEER = "◊"
_WIDTH = 11.0
_WIDE = 4  # times in which the longest exceeds the shortest, from which on an axis is logarithmic
_BOUNDS = (("lb1_at_weights_s", "solid", "bound, these weights"), ("lb0_s", "dotted", "bound, any capacity"))
_OVER_STEPS = {
    "alpha": ("alpha: read from HBM", "alpha*: both memories end together"),
    "hbm_bytes": ("HBM in use", "HBM is full"),
}


def times(rows: pl.DataFrame, heading: str, colours: Palette, theme: Theme) -> "Figure":
    """Total time of every pair: a panel for each placement, a bar for each migration, the bounds as lines."""
    placements = rows["placement"].unique(maintain_order=True).to_list()
    most = max(rows.filter(pl.col("placement") == name).height for name in placements)
    figure, panels = _panels(placements, 0.7 + 0.24 * most, heading, theme)
    longest = extreme(rows, "time_s")
    scale, unit = _time_scale(longest)
    drawn: dict[str, Artist] = {}
    for index, (axes, placement) in enumerate(zip(panels, placements, strict=True)):
        here = rows.filter(pl.col("placement") == placement).sort("time_s")
        names = here["migration"].to_list()
        seconds = (here["time_s"] * scale).to_list()
        bars = axes.barh(range(len(names)), seconds, color=[colours.colour(name) for name in names], height=0.72)
        told = [f"{value:,.0f}" if value >= 1000 else f"{value:#.4g}" for value in seconds]
        axes.bar_label(bars, told, padding=3, fontsize=8)
        labels = [marked(name, seer) for name, seer in zip(names, here["clairvoyant"], strict=True)]
        axes.set_yticks(range(len(names)), labels)
        axes.invert_yaxis()
        for column, dashes, name in _BOUNDS:
            line = axes.axvline(here[column][0] * scale, color=theme.bound, linewidth=1.3, linestyle=dashes)
            drawn.setdefault(name, line)
        axes.set_title(placement)
        axes.set_xlim(0, longest * scale * 1.12 or 1.0)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        if index >= len(placements) - 2:
            axes.set_xlabel(f"time of the decode ({unit})")
    _legend(figure, drawn, 3, bool(rows["clairvoyant"].any()))
    return figure


def over_steps(
    groups: Panels,
    curves: Mapping[str, Curve],
    what: Quantity,
    limits: Mapping[str, float],
    heading: str,
    colours: Palette,
    theme: Theme,
) -> "Figure":
    """Alpha or HBM occupancy over the decode steps, a line for each row that has a curve.

    limits: by row, what the quantity is measured against, as a part of 1: alpha*, or all of HBM.
    """
    quantity, limit_name = _OVER_STEPS[what]
    figure, panels = _panels([title for title, _ in groups], 3.1, heading, theme)
    drawn: dict[str, Artist] = {}
    ends: dict[str, Artist] = {}
    for axes, (title, rows) in zip(panels, groups, strict=True):
        shown = [row for row in rows.iter_rows(named=True) if row["id"] in curves]
        for row in shown:
            label = marked(f"{row['migration']}, {row['placement']}", row["clairvoyant"])
            colour, dashes = colours.colour(row["migration"]), colours.line(row["migration"])
            steps, values = curves[row["id"]].step + 1, parts(row, curves[row["id"]], what)
            width = colours.width(row["migration"])
            (line,) = axes.plot(steps, values, color=colour, linestyle=dashes, linewidth=width, zorder=3 - width / 4)
            drawn.setdefault(label, line)
        for limit in sorted({limits[row["id"]] for row in shown if row["id"] in limits}):
            ends[limit_name] = axes.axhline(limit, color=theme.bound, linewidth=1, linestyle="dotted")
        axes.set_title(title)
        axes.set_xlabel("decode step")
        axes.set_ylabel(quantity)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
        if what == "hbm_bytes":
            axes.set_ylim(0, 1.05)
        axes.grid(axis="y")
    _legend(figure, drawn | ends, 3, any(rows["clairvoyant"].any() for _, rows in groups))
    return figure


def against(key: str, groups: Panels, heading: str, colours: Palette, theme: Theme) -> "Figure":
    """Time over a setting that takes several values: for each migration its fastest placement, and the bounds."""
    figure, panels = _panels([title for title, _ in groups], 3.8, heading, theme)
    drawn: dict[str, Artist] = {}
    longest = max(extreme(rows, "time_s") for _, rows in groups)
    shortest = min(extreme(rows, "lb0_s", largest=False) for _, rows in groups)
    is_log = 0 < shortest * _WIDE < longest
    scale, unit = _time_scale(longest)
    fastest = [(title, rows, rows.sort("time_s").unique([key, "migration"], keep="first")) for title, rows in groups]
    seers = {name for *_, best in fastest for name in best.filter(pl.col("clairvoyant"))["migration"]}
    for axes, (title, rows, best) in zip(panels, fastest, strict=True):
        for migration in rows["migration"].unique(maintain_order=True):
            mine, colour = best.filter(pl.col("migration") == migration).sort(key), colours.colour(migration)
            values, dashes = (mine["time_s"] * scale).to_list(), colours.line(migration)
            width = colours.width(migration)
            (line,) = axes.plot(mine[key].to_list(), values, color=colour, linestyle=dashes, linewidth=width)
            line.set(marker="o", markersize=width + 2.5, zorder=3 - width / 4)
            drawn.setdefault(marked(migration, migration in seers), line)
        bound = rows.group_by(key).agg(pl.col("lb1_at_weights_s", "lb0_s").min()).sort(key)
        for column, dashes, name in _BOUNDS:
            values = (bound[column] * scale).to_list()
            (line,) = axes.plot(bound[key].to_list(), values, color=theme.bound, linestyle=dashes, zorder=1.8)
            line.set(linewidth=3, alpha=0.6)  # what comes close to it lies on it
            drawn.setdefault(name, line)
        axes.set_title(title)
        axes.set_xlabel(key.replace("_", " "))
        axes.xaxis.set_major_formatter(lambda value, _: plain(int(value) if value >= 1000 else float(value), key))
        axes.set_ylabel(f"time of the decode ({unit}{', log scale' if is_log else ''})")
        if is_log:
            axes.set_yscale("log")
            for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                formatted(lambda value, _: f"{value:g}")
        else:
            axes.set_ylim(bottom=0)
        axes.grid(axis="y", which="both")
    _legend(figure, drawn, 4, bool(seers))
    return figure


def gap(groups: Panels, heading: str, theme: Theme) -> "Figure":
    """How much of the bound every pair reaches: placements down, migrations across, in percent."""
    most = max(rows["placement"].n_unique() for _, rows in groups)
    told = f"{heading}\nbound with these weights / time, in percent"
    figure, panels = _panels([title for title, _ in groups], 1.7 + 0.32 * most, told, theme, columns=1)
    dark = min(0.5, *(extreme(rows, "oracle_share", largest=False) for _, rows in groups))
    for axes, (title, rows) in zip(panels, groups, strict=True):
        across = rows["migration"].unique(maintain_order=True).to_list()
        down = rows["placement"].unique(maintain_order=True).to_list()
        pairs = {(row["placement"], row["migration"]): row for row in rows.iter_rows(named=True)}
        cells = [[pairs.get((placement, migration)) for migration in across] for placement in down]
        shares = [[math.nan if row is None else row["oracle_share"] for row in line] for line in cells]
        axes.imshow(shares, aspect="auto", cmap="cividis", vmin=dark, vmax=1)
        for y, line in enumerate(cells):
            for x, row in enumerate(line):
                if row is not None:
                    ink = "#fdfdfd" if row["oracle_share"] < (dark + 1) / 2 else "#0a0a0a"
                    share = marked(f"{100 * row['oracle_share']:.1f}".replace("100.0", "100"), row["clairvoyant"])
                    axes.text(x, y, share, ha="center", va="center", color=ink, fontsize=9)
        axes.set_xticks(range(len(across)), across, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(down)), down)
        axes.tick_params(length=0)
        axes.set_title(title)
        axes.spines[:].set_visible(False)
    _legend(figure, {}, 1, any(rows["clairvoyant"].any() for _, rows in groups))
    return figure


def marked(name: str, clairvoyant: bool) -> str:
    """A name with the mark of what looks ahead."""
    return f"{name} {SEER}" if clairvoyant else name


def parts(row: Mapping[str, float], curve: Curve, what: Quantity) -> NDArray[np.float64]:
    """A quantity over the steps, as a part of 1."""
    return curve.alpha if what == "alpha" else curve.hbm_bytes / row["hbm_capacity_bytes"]


def extreme(rows: pl.DataFrame, column: str, largest: bool = True) -> float:
    """The largest (or smallest) number in a column."""
    values = rows[column].drop_nulls().to_list()
    return float(max(values) if largest else min(values))


def _panels(
    titles: Sequence[str], height: float, heading: str, theme: Theme, columns: int = 2
) -> tuple["Figure", list["Axes"]]:
    """A figure with a panel for each title, in rows of `columns`, under its heading."""
    from matplotlib.figure import Figure

    columns = min(columns, len(titles))
    lines = -(-len(titles) // columns)
    figure = Figure(figsize=(_WIDTH, 1.0 + height * lines), layout="constrained", facecolor=theme.paper)
    figure.suptitle(heading, x=0.01, ha="left", fontsize=9)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for empty in panels[len(titles) :]:
        empty.remove()
    return figure, panels[: len(titles)]


def _legend(figure: "Figure", drawn: Mapping[str, "Artist"], columns: int, seers: bool) -> None:
    """What lines and the mark mean, below the panels."""
    from matplotlib.lines import Line2D

    entries = dict(drawn)
    if seers:
        entries[f"{SEER} looks ahead in the trace, which no real system can"] = Line2D([], [], linestyle="none")
    if entries:
        columns = min(columns, len(entries))
        figure.legend(list(entries.values()), list(entries), loc="outside lower left", ncols=columns)


def _time_scale(longest_s: float) -> tuple[float, str]:
    """A factor on seconds, and its unit, for axes."""
    return (1000.0, "ms") if longest_s < 1 else (1.0, "s")
