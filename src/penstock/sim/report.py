"""report.html: a study's figures with a table under each, in one file that asks the network for nothing.

Every figure is also written beside it, as PNG and SVG, for papers and slides.
"""

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path

import polars as pl

from penstock import drawing
from penstock.part_file import PartFile
from penstock.sim import figures
from penstock.sim.figure_style import DARK, LIGHT, drawn_in, recoloured
from penstock.sim.plates import MOST_PANELS, Plate, grouped, plates
from penstock.sim.readable import percent, seconds
from penstock.sim.row import Curve
from penstock.sim.table import varied

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


def write_report(
    directory: Path,
    frame: pl.DataFrame,
    curves: Mapping[str, Curve],
    best_shares: Mapping[str, float] | None = None,
) -> Path:
    """Write report.html and the figures into a directory, and return the report's path.

    frame: a results table of at least one row. curves, best_shares (alpha*): by the `id` of a row; a row without a
    curve is left out of the figures over steps.
    """
    parts = [_top(frame)]
    parts += [_section(plate, _drawn(plate, directory)) for plate in plates(frame, curves, best_shares or {})]
    parts.append("</body></html>\n")
    path = directory / "report.html"
    with PartFile(path) as whole:
        whole.file.write("\n".join(parts).encode())
    return path


def _drawn(plate: Plate, directory: Path) -> str:
    """A figure as SVG, which is also written beside the report, as is a PNG."""
    with drawn_in(LIGHT):
        figure = plate.draw(LIGHT)
        if (layout := figure.get_layout_engine()) is not None:
            layout.execute(figure)
        figure.set_layout_engine(None)  # laid out it is; saving would do it again, and draw twice to do so
        svg = drawing.svg(figure)
        figure.savefig(directory / f"{plate.name}.png", dpi=drawing.DPI)
    (directory / f"{plate.name}.svg").write_text(svg, encoding="utf-8")
    return svg


def _top(frame: pl.DataFrame) -> str:
    """The head of the page: what was studied, and the answer."""
    scenario = ", ".join(frame["scenario"].unique(maintain_order=True).to_list())
    style = _STYLE % {"paper": LIGHT.paper, "ink": LIGHT.ink, "dark_paper": DARK.paper, "dark_ink": DARK.ink}
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<link rel="icon" href="data:,"><title>{escape(scenario)}: placement and migration</title>',
            f"<style>{style}</style></head><body>",
            f"<h1>{escape(scenario)}: placement and migration</h1>\n<p>{escape(_answer(frame))}</p>",
        ]
    )


def _answer(frame: pl.DataFrame) -> str:
    """What is fastest, and how to read the rest."""
    groups = grouped(frame, varied(frame))
    best = frame.sort("time_s").row(0, named=True)
    runs = "One run" if frame.height == 1 else f"{frame.height:,} runs"
    settings = f" in {len(groups):,} settings" if len(groups) > 1 else ""
    where = next((f" ({title})" for title, rows in groups if title and best["id"] in rows["id"]), "")
    told = [
        f"{runs}{settings}. The fastest is {best['placement']} with {best['migration']}{where}:"
        f" {seconds(best['time_s'])} for {best['decode_tokens']:,} tokens,"
        f" {percent(best['oracle_share'])} of the bound."
    ]
    if frame["clairvoyant"].any():
        told.append(f"What is clairvoyant ({figures.SEER}) looks ahead in the trace, which no real system can.")
    if len(groups) > MOST_PANELS:
        told.append(f"Figures show the first {MOST_PANELS} settings; results.csv has all of them.")
    return " ".join(told)


def _section(plate: Plate, svg: str) -> str:
    """svg: the figure; as an image it has names of its own, which two in one page would share."""
    sources = {
        theme: "data:image/svg+xml;base64," + base64.b64encode(drawn.encode()).decode()
        for theme, drawn in (("light", svg), ("dark", recoloured(svg, LIGHT, DARK)))
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
