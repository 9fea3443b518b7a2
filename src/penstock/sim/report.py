"""report.html: a study's figures with a table under each, in one file that asks the network for nothing.

Every figure is also written beside it, as PNG and SVG, for papers and slides.
"""

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from penstock.sim import figures
from penstock.sim.figure_style import DARK, LIGHT, Palette, Theme, drawn_in, palette, recoloured
from penstock.sim.row import Curve
from penstock.sim.table import varied
from penstock.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_PANELS = 6  # of one figure, and figures of one kind: a page that nobody scrolls through helps nobody
_MOST_LINES = 8
_DPI = 130
_STYLE = """
:root { color-scheme: light dark; --paper: %(paper)s; --ink: %(ink)s; --faint: #dddddd }
@media (prefers-color-scheme: dark) { :root { --paper: %(dark_paper)s; --ink: %(dark_ink)s; --faint: #333a44 } }
body { font: 15px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin: 3rem 0 .3rem } figure { margin: .5rem 0 }
img { width: 100%%; height: auto } p { max-width: 46rem }
.scroll { overflow-x: auto; max-height: 28rem; overflow-y: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
td, th { padding: .2rem .9rem .2rem 0; text-align: right; border-bottom: 1px solid var(--faint); white-space: nowrap }
th { position: sticky; top: 0; background: var(--paper) }
td.text, th.text { text-align: left }
"""

Cells = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Plate:
    """One figure of the report: its file name, the question that it answers, how to draw it, and the table under it."""

    name: str
    question: str
    told: str
    draw: Callable[[Theme], "Figure"]
    head: Sequence[str]
    cells: Cells


def write_report(directory: Path, frame: pl.DataFrame, curves: Mapping[str, Curve]) -> Path:
    """Write report.html and the figures into a directory, and return the report's path.

    frame: a results table of at least one row; curves: by the `id` of a row; a row without one is left out of the
    figures over steps.
    """
    colours = palette(frame["migration"].to_list())
    parts = [_top(frame)]
    for plate in _plates(frame, curves, colours):
        parts.append(_section(plate, _drawn(plate, directory)))
    parts.append("</body></html>\n")
    path = directory / "report.html"
    beside = path.with_name(".report.html.new")
    beside.write_text("\n".join(parts), encoding="utf-8")
    beside.replace(path)
    return path


def _drawn(plate: Plate, directory: Path) -> str:
    """A figure as SVG, which is also written beside the report, as is a PNG."""
    with drawn_in(LIGHT):
        figure = plate.draw(LIGHT)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # what was laid out stays: laying out takes longer than drawing
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        figure.savefig(directory / f"{plate.name}.png", dpi=_DPI)
    (directory / f"{plate.name}.svg").write_text(text.getvalue(), encoding="utf-8")
    return text.getvalue()


def _plates(frame: pl.DataFrame, curves: Mapping[str, Curve], colours: Palette) -> Iterator[Plate]:
    settings = varied(frame)
    groups = list(_groups(frame, settings))
    shown = groups[:_MOST_PANELS]
    for index, (title, rows) in enumerate(shown):
        name = "times" if len(groups) == 1 else f"times-{index + 1}"
        at = f" ({title})" if title else ""
        yield Plate(
            name,
            f"Which placement and migration are fastest{at}?",
            "Bars are the time of the whole decode; no policy can be left of the lines. ◊ looks ahead in the trace, "
            "which no real system can.",
            lambda theme, rows=rows: figures.times(rows, colours, theme),  # type: ignore[misc]  # a default binds the loop's value
            ("placement", "migration", "", "time", "of bound", "mean alpha", "KV from HBM", "moved"),
            [_pair_cells(row) for row in rows.sort("time_s").iter_rows(named=True)],
        )
    for key in settings:
        if frame[key].dtype.is_numeric():
            rest = list(_groups(frame.drop_nulls(key), [name for name in settings if name != key]))[:_MOST_PANELS]
            yield Plate(
                f"against-{key.replace('_', '-')}",
                f"How does time change with {key.replace('_', ' ')}?",
                "For each migration its fastest placement.",
                lambda theme, key=key, rest=rest: figures.against(key, rest, colours, theme),  # type: ignore[misc]  # a default binds the loop's value
                ("", key, *("fastest", "with", "bound")),
                list(_against_cells(key, rest)),
            )
    lines = [(title, _fastest(rows)) for title, rows in shown]
    if any(row in curves for _, rows in lines for row in rows["id"]):
        for what, name, question in (
            ("alpha", "alpha", "How much of what is read comes from HBM, step by step?"),
            ("hbm_bytes", "occupancy", "How full is HBM, step by step?"),
        ):
            yield Plate(
                name,
                question,
                f"For each migration its fastest placement, the {_MOST_LINES} fastest of them.",
                lambda theme, what=what: figures.over_steps(lines, curves, what, colours, theme),  # type: ignore[misc]  # a default binds the loop's value
                ("", "migration", "placement", "first", "mean", "last"),
                list(_curve_cells(lines, curves, what)),
            )
    yield Plate(
        "gap",
        "How close does each pair come to the bound?",
        "100 is the least time that any policy could take with these weights where they are (LB1 at ω).",
        lambda theme: figures.gap(shown, theme),
        ("", "fastest pair", "", "of bound", "slowest pair", "", "of bound"),
        list(_gap_cells(shown)),
    )


def _groups(frame: pl.DataFrame, settings: Sequence[str]) -> Iterator[tuple[str, pl.DataFrame]]:
    """The rows of each combination of settings, with a title that tells them apart (empty: there is one alone)."""
    if not settings:
        yield "", frame
        return
    for values, rows in frame.group_by(settings, maintain_order=True):
        pairs = zip(settings, values, strict=True)
        yield ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in pairs if value is not None), rows


def _fastest(rows: pl.DataFrame) -> pl.DataFrame:
    """For each migration its fastest row, the fastest first."""
    return rows.sort("time_s").unique("migration", keep="first", maintain_order=True).head(_MOST_LINES)


def _pair_cells(row: Mapping[str, object]) -> list[str]:
    return [
        str(row["placement"]),
        str(row["migration"]),
        "clairvoyant" if row["clairvoyant"] else "",
        _seconds(row["time_s"]),
        _percent(row["oracle_share"]),
        _percent(row["mean_alpha_bytes"]),
        _percent(row["hbm_hit_rate"]),
        format_bytes(int(str(row["migrated_bytes"]))) if row["migrated_bytes"] else "–",
    ]


def _against_cells(key: str, groups: figures.Panels) -> Iterator[list[str]]:
    for title, rows in groups:
        for (value,), here in rows.sort(key).group_by(key, maintain_order=True):
            best = here.sort("time_s").row(0, named=True)
            pair = f"{best['placement']}, {best['migration']}"
            yield [title, _plain(value), _seconds(best["time_s"]), pair, _seconds(best["lb1_at_weights_s"])]


def _curve_cells(groups: figures.Panels, curves: Mapping[str, Curve], what: str) -> Iterator[list[str]]:
    for title, rows in groups:
        for row in rows.iter_rows(named=True):
            if curve := curves.get(row["id"]):
                values = curve.alpha if what == "alpha" else curve.hbm_bytes / row["hbm_capacity_bytes"]
                read = values[~np.isnan(values)]
                ends = (read[0], read.mean(), read[-1]) if len(read) else (None, None, None)
                yield [title, row["migration"], row["placement"], *map(_percent, ends)]


def _gap_cells(groups: figures.Panels) -> Iterator[list[str]]:
    for title, rows in groups:
        ranked = rows.sort("time_s")
        ends = (ranked.row(0, named=True), ranked.row(-1, named=True))
        told = [cell for row in ends for cell in (row["placement"], row["migration"], _percent(row["oracle_share"]))]
        yield [title, *told]


def _top(frame: pl.DataFrame) -> str:
    """The head of the page: what was studied, and the answer."""
    best = frame.sort("time_s").row(0, named=True)
    scenario = ", ".join(frame["scenario"].unique(maintain_order=True).to_list())
    pair, took = f"{best['placement']} with {best['migration']}", _seconds(best["time_s"])
    runs = "One run" if frame.height == 1 else f"{frame.height:,} runs"
    answer = (
        f"{runs}. The fastest is {pair}: {took} for {best['decode_tokens']:,} tokens, "
        f"{_percent(best['oracle_share'])} of the bound."
    )
    style = _STYLE % {"paper": LIGHT.paper, "ink": LIGHT.ink, "dark_paper": DARK.paper, "dark_ink": DARK.ink}
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<link rel="icon" href="data:,"><title>{escape(scenario)}: placement and migration</title>',
            f"<style>{style}</style></head><body>",
            f"<h1>{escape(scenario)}: placement and migration</h1>\n<p>{escape(answer)}</p>",
        ]
    )


def _section(plate: Plate, svg: str) -> str:
    """svg: the figure; as an image it has names of its own, which two in one page would share."""
    sources = {"light": svg, "dark": recoloured(svg, LIGHT, DARK)}
    sources = {
        theme: "data:image/svg+xml;base64," + base64.b64encode(drawn.encode()).decode()
        for theme, drawn in sources.items()
    }
    head = "".join(_cell("th", cell) for cell in plate.head)
    body = "\n".join("<tr>" + "".join(_cell("td", cell) for cell in cells) + "</tr>" for cells in plate.cells)
    return (
        f"<h2>{escape(plate.question)}</h2>\n<p>{escape(plate.told)}</p>\n<figure><picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{sources["dark"]}">'
        f'<img src="{sources["light"]}" alt="{escape(plate.question)}"></picture></figure>\n'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def _cell(tag: str, text: str) -> str:
    """A cell; words stand to the left, figures to the right."""
    words = "" if text[:1].isdigit() or text == "–" else ' class="text"'
    return f"<{tag}{words}>{escape(text)}</{tag}>"


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _seconds(value: object) -> str:
    seconds = float(str(value))
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else format_seconds(seconds)


def _percent(value: object) -> str:
    return "–" if value is None else f"{100 * float(str(value)):.1f} %"
