"""The pictures of a study: which pair is fastest, and what HBM served and held over the steps.

Every figure takes part of a results table (`penstock.sim.table`) and the palette of the whole study.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import polars as pl

from penstock.sim.figure_style import Palette, Theme
from penstock.sim.row import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Panels = Sequence[tuple[str, pl.DataFrame]]  # a title, and the rows that belong under it

_WIDTH = 11.0
_LEGEND_COLUMNS = 4
_BOUNDS = (("lb1_at_weights_s", "solid", "bound, these weights"), ("lb0_s", "dotted", "bound, any policy"))


def times(rows: pl.DataFrame, colours: Palette, theme: Theme) -> "Figure":
    """Total time of every pair: a panel for each placement, a bar for each migration, the bounds as lines."""
    placements = rows["placement"].unique(maintain_order=True).to_list()
    most = max(rows.filter(pl.col("placement") == name).height for name in placements)
    figure, panels = _panels(placements, 0.7 + 0.24 * most, theme)
    scale, unit = _time_scale(extreme(rows, "time_s"))
    for index, (axes, placement) in enumerate(zip(panels, placements, strict=False)):
        here = rows.filter(pl.col("placement") == placement).sort("time_s")
        seconds = [time * scale for time in here["time_s"]]
        names = here["migration"].to_list()
        axes.barh(range(len(names)), seconds, color=[colours.colour(name) for name in names], height=0.72)
        labels = [f"{name} ◊" if seer else name for name, seer in zip(names, here["clairvoyant"], strict=True)]
        axes.set_yticks(range(len(names)), labels)
        axes.invert_yaxis()
        for column, dashes, name in _BOUNDS:
            axes.axvline(here[column][0] * scale, color=theme.bound, linewidth=1.3, linestyle=dashes, label=name)
        axes.set_title(placement)
        axes.set_xlim(0, extreme(rows, "time_s") * scale * 1.04)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        if index >= len(placements) - 2:
            axes.set_xlabel(f"time of the decode ({unit})")
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower left", ncols=2, fontsize=9)
    return figure


def over_steps(groups: Panels, curves: Mapping[str, Curve], what: str, colours: Palette, theme: Theme) -> "Figure":
    """Alpha (`what` = "alpha") or HBM occupancy ("hbm_bytes") over the decode steps, a line for each row."""
    figure, panels = _panels([title for title, _ in groups], 3.1, theme)
    drawn: dict[str, Line2D] = {}
    for axes, (title, rows) in zip(panels, groups, strict=True):
        for row in rows.iter_rows(named=True):
            curve = curves.get(row["id"])
            if curve is None:
                continue
            values = curve.alpha if what == "alpha" else curve.hbm_bytes / row["hbm_capacity_bytes"]
            label = f"{row['migration']}, {row['placement']}"
            colour, dashes = colours.colour(row["migration"]), colours.line(row["migration"])
            (line,) = axes.plot(curve.step + 1, values, color=colour, linestyle=dashes, linewidth=1.5)
            drawn.setdefault(label, line)
        axes.set_title(title)
        axes.set_xlabel("decode step")
        axes.set_ylabel("read from HBM" if what == "alpha" else "of HBM in use")
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
        if what != "alpha":
            axes.set_ylim(0, 1.05)
            axes.axhline(1, color=theme.bound, linewidth=1, linestyle="dotted")
        axes.grid(axis="y")
    figure.legend(
        list(drawn.values()), list(drawn), loc="outside lower left", ncols=min(3, max(1, len(drawn))), fontsize=9
    )
    return figure


def against(key: str, groups: Panels, colours: Palette, theme: Theme) -> "Figure":
    """Time over a setting that takes several values: for each migration its fastest placement, and the bounds."""
    figure, panels = _panels([title for title, _ in groups], 3.8, theme)
    drawn: dict[str, Line2D] = {}
    scale, unit = _time_scale(max(extreme(rows, "time_s") for _, rows in groups))
    for axes, (title, rows) in zip(panels, groups, strict=True):
        for (migration,), mine in rows.group_by("migration", maintain_order=True):
            best = mine.group_by(key).agg(pl.col("time_s").min()).sort(key)
            values, colour = (best["time_s"] * scale).to_list(), colours.colour(migration)
            (line,) = axes.plot(
                best[key].to_list(), values, color=colour, linestyle=colours.line(migration), marker="o", ms=3.5
            )
            drawn.setdefault(migration, line)
        bound = rows.group_by(key).agg(pl.col("lb1_at_weights_s", "lb0_s").min()).sort(key)
        for column, dashes, name in _BOUNDS:
            values = (bound[column] * scale).to_list()
            (line,) = axes.plot(bound[key].to_list(), values, color=theme.bound, linestyle=dashes, linewidth=1.2)
            drawn.setdefault(name, line)
        axes.set_title(title)
        axes.set_xlabel(key.replace("_", " "))
        axes.set_ylabel(f"time of the decode ({unit})")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
    figure.legend(list(drawn.values()), list(drawn), loc="outside lower left", ncols=_LEGEND_COLUMNS, fontsize=9)
    return figure


def gap(groups: Panels, theme: Theme) -> "Figure":
    """How much of the bound every pair reaches: placements down, migrations across, in percent."""
    figure, panels = _panels([title for title, _ in groups], 3.6, theme, columns=1)
    dark = min(0.5, *(extreme(rows, "oracle_share", largest=False) for _, rows in groups))
    for axes, (title, rows) in zip(panels, groups, strict=True):
        across = rows["migration"].unique(maintain_order=True).to_list()
        down = rows["placement"].unique(maintain_order=True).to_list()
        shares = {(r["placement"], r["migration"]): r["oracle_share"] for r in rows.iter_rows(named=True)}
        cells = [[shares.get((placement, migration), math.nan) for migration in across] for placement in down]
        axes.imshow(cells, aspect="auto", cmap="cividis", vmin=dark, vmax=1)
        for y, line in enumerate(cells):
            for x, share in enumerate(line):
                if not math.isnan(share):
                    ink = "#fdfdfd" if share < (dark + 1) / 2 else "#0a0a0a"
                    axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=9)
        axes.set_xticks(range(len(across)), across, rotation=30, ha="right")
        axes.set_yticks(range(len(down)), down)
        axes.set_title(title)
        axes.spines[:].set_visible(False)
    return figure


def _panels(titles: Sequence[str], height: float, theme: Theme, columns: int = 2) -> tuple["Figure", list["Axes"]]:
    """A figure with a panel for each title, in rows of `columns`."""
    from matplotlib.figure import Figure

    columns = min(columns, len(titles))
    lines = -(-len(titles) // columns)
    figure = Figure(figsize=(_WIDTH, 0.8 + height * lines), layout="constrained", facecolor=theme.paper)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for empty in panels[len(titles) :]:
        empty.remove()
    return figure, panels[: len(titles)]


def extreme(rows: pl.DataFrame, column: str, largest: bool = True) -> float:
    """The largest (or smallest) number in a column."""
    values = rows[column].drop_nulls().to_list()
    return float(max(values) if largest else min(values))


def _time_scale(longest_s: float) -> tuple[float, str]:
    """A factor on seconds, and its unit, for axes."""
    return (1000.0, "ms") if longest_s < 1 else (1.0, "s")
