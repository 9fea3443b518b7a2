"""The figures of a report, each with the question that it answers and the table under it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from penstock.sim import figures
from penstock.sim.figure_style import Palette, Theme, palette
from penstock.sim.readable import heading, percent, plain, seconds, share, size
from penstock.sim.row import Curve
from penstock.sim.scenario_quantities import read_rate
from penstock.sim.table import swept_columns, varied

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PANELS = 6  # of one figure, and figures of one kind: a page that nobody scrolls through helps nobody
_MOST_LINES = 8

Cells = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Plate:
    """One figure: its file's name, the question that it answers, how to draw it, and the table under it."""

    name: str
    question: str
    told: str
    draw: Callable[[Theme], "Figure"]
    head: Sequence[str]
    cells: Cells


def plates(frame: pl.DataFrame, curves: Mapping[str, Curve], best_shares: Mapping[str, float]) -> Iterator[Plate]:
    """The figures of a results table; curves and best_shares (alpha*): by the `id` of a row, where they are known."""
    frame, colours, name = _with_numbers(frame), palette(frame["migration"].to_list()), heading(frame)
    settings = varied(frame)
    shown = grouped(frame, settings)[:MOST_PANELS]
    for number, (title, rows) in enumerate(shown, 1):
        at = f" ({title})" if title else ""
        yield Plate(
            "times" if len(shown) == 1 else f"times-{number}",
            f"Which placement and migration are fastest{at}?",
            "Bars are the time of the whole decode; no policy can be left of the lines.",
            partial(figures.times, rows, heading(rows, settings), colours),
            ("placement", "migration", "", "time", "of bound", "mean alpha", "KV from HBM", "moved"),
            [_pair_cells(row) for row in rows.sort("time_s").iter_rows(named=True)],
        )
    for key in settings:
        if frame[key].dtype.is_numeric():
            yield _against(frame, key, settings, name, colours)
    yield from _over_steps(shown, curves, best_shares, name, colours)
    yield Plate(
        "gap",
        "How close does each pair come to the bound?",
        "In percent: 100 is the least time that any policy could take with these weights where they are (LB1 at ω).",
        partial(figures.gap, shown, name),
        ("", "fastest placement", "migration", "", "of bound", "slowest placement", "migration", "", "of bound"),
        list(_gap_cells(shown)),
    )


def grouped(frame: pl.DataFrame, settings: Sequence[str]) -> list[tuple[str, pl.DataFrame]]:
    """The rows of each combination of settings, with a title that tells them apart (empty: there is one alone).

    Policies that do not have a swept option stand beside the others in the group of each of its values.
    """
    optional = [name for name in settings if name in swept_columns(frame) and frame[name].null_count()]
    fixed = [name for name in settings if name not in optional]
    groups = []
    for rows in [rows for _, rows in frame.group_by(fixed, maintain_order=True)] if fixed else [frame]:
        for values in product(*([*rows[name].drop_nulls().unique(maintain_order=True)] or [None] for name in optional)):
            here, options = rows, dict(zip(optional, values, strict=True))
            for name, value in options.items():
                here = here.filter(pl.col(name).is_null() | (pl.col(name) == value))
            told = {name: here[name][0] for name in fixed} | options
            title = ", ".join(f"{_words(key)} {plain(value, key)}" for key, value in told.items() if value is not None)
            groups.append((title, here))
    return groups


def _with_numbers(frame: pl.DataFrame) -> pl.DataFrame:
    """Swept bandwidths as numbers, however they were written: text has no axis."""
    texts = [name for name in swept_columns(frame) if name.startswith("bandwidths.") and frame[name].dtype == pl.String]
    return frame.with_columns(pl.Series(name, [read_rate(text) for text in frame[name]]) for name in texts)


def _against(frame: pl.DataFrame, key: str, settings: Sequence[str], name: str, colours: Palette) -> Plate:
    groups = grouped(frame.drop_nulls(key), [other for other in settings if other != key])[:MOST_PANELS]
    return Plate(
        f"against-{key.replace('_', '-')}",
        f"How does time change with {_words(key)}?",
        "For each migration its fastest placement.",
        partial(figures.against, key, groups, name, colours),
        ("", _words(key), "fastest placement", "migration", "", "time", "bound"),
        list(_against_cells(key, groups)),
    )


def _over_steps(
    shown: figures.Panels,
    curves: Mapping[str, Curve],
    best_shares: Mapping[str, float],
    name: str,
    colours: Palette,
) -> Iterator[Plate]:
    lines = [(title, _fastest(rows)) for title, rows in shown]
    if not any(row in curves for _, rows in lines for row in rows["id"]):
        return
    told = f"For each migration its fastest placement, the {_MOST_LINES} fastest of them."
    head = ("", "placement", "migration", "", "first", "mean", "last")
    question = "How much of what is read comes from HBM, step by step?"
    draw = partial(figures.over_steps, lines, curves, "alpha", best_shares, name, colours)
    yield Plate("alpha", question, told, draw, head, list(_curve_cells(lines, curves, "alpha")))
    full = dict.fromkeys(curves, 1.0)
    draw = partial(figures.over_steps, lines, curves, "hbm_bytes", full, name, colours)
    cells = list(_curve_cells(lines, curves, "hbm_bytes"))
    yield Plate("occupancy", "How full is HBM, step by step?", told, draw, head, cells)


def _fastest(rows: pl.DataFrame) -> pl.DataFrame:
    """For each migration its fastest row, the fastest first."""
    return rows.sort("time_s").unique("migration", keep="first", maintain_order=True).head(_MOST_LINES)


def _named(row: Mapping[str, object]) -> list[str]:
    """A row's pair, as tables name it."""
    return [str(row["placement"]), str(row["migration"]), "clairvoyant" if row["clairvoyant"] else ""]


def _pair_cells(row: Mapping[str, float]) -> list[str]:
    return [
        *_named(row),
        seconds(row["time_s"]),
        percent(row["oracle_share"]),
        share(row["mean_alpha_bytes"]),
        percent(row["hbm_hit_rate"]),
        size(row["migrated_bytes"]),
    ]


def _against_cells(key: str, groups: figures.Panels) -> Iterator[list[str]]:
    for title, rows in groups:
        for (value,), here in rows.sort(key).group_by(key, maintain_order=True):
            best = here.sort("time_s").row(0, named=True)
            bound = seconds(best["lb1_at_weights_s"])
            yield [title, plain(value, key), *_named(best), seconds(best["time_s"]), bound]


def _curve_cells(groups: figures.Panels, curves: Mapping[str, Curve], what: figures.Quantity) -> Iterator[list[str]]:
    for title, rows in groups:
        for row in rows.iter_rows(named=True):
            if curve := curves.get(row["id"]):
                values = figures.parts(row, curve, what)
                read = values[~np.isnan(values)]
                ends = (read[0], read.mean(), read[-1]) if len(read) else (None, None, None)
                yield [title, *_named(row), *map(percent, ends)]


def _gap_cells(groups: figures.Panels) -> Iterator[list[str]]:
    for title, rows in groups:
        ranked = rows.sort("time_s")
        ends = (ranked.row(0, named=True), ranked.row(-1, named=True))
        yield [title, *(cell for row in ends for cell in (*_named(row), percent(row["oracle_share"])))]


def _words(key: str) -> str:
    return key.replace("_", " ")
