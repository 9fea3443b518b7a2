"""A plan as a page of its own: the figure and every table, in one file without anything from elsewhere."""

from collections.abc import Iterator, Sequence
from html import escape

from penstock.cli import figures
from penstock.cli.plan_table import table, tiers_of
from penstock.plan.plan import Plan
from penstock.units import format_bytes, format_seconds

_WIDTH = 96
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.05rem; margin: 2rem 0 .4rem }
svg { width: 100%; height: auto } table { border-collapse: collapse }
td, th { padding: .2rem .9rem .2rem 0; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap }
td:first-child, th:first-child, td.text { text-align: left } td.text { white-space: normal }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: 13px; line-height: 1.4 }
"""

Row = Sequence[str]


def page(plan: Plan, svg: str) -> str:
    """The page. svg: the figure, as matplotlib writes it."""
    title = escape(f"{plan.model}: {figures.speed(plan.predicted.total_tok_s)} tok/s")
    told = escape("\n".join(line.text for line in table(plan, _WIDTH)))
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f"<p>{escape(plan.job)}<br>{escape(plan.machine)}</p>",
        svg[svg.index("<svg") :],
        *_tables(plan),
        f"<h2>In words</h2><pre>{told}</pre></body></html>\n",
    ]
    return "\n".join(parts)


def _tables(plan: Plan) -> Iterator[str]:
    kinds = ("weights", "in_place", "kv", "activations", "buffers", "taken", "free", "short", "budget")
    tiers = tiers_of(plan)
    yield _table(
        "Where every byte rests",
        ["", *({"kv": "KV", "in_place": "read in place"}.get(kind, kind) for kind in kinds)],
        [[tier, *(format_bytes(getattr(plan.memory[tier], kind)) for kind in kinds)] for tier in tiers],
    )
    steady, predicted = plan.predicted.steady, plan.predicted
    yield _table(
        "What each lane does",
        ["", "in a sweep", "of its time", "in the job"],
        [
            [
                figures.link(lane),
                format_seconds(seconds),
                figures.share(seconds / steady.seconds if steady.seconds else 0.0),
                format_seconds(predicted.lanes.get(lane, 0.0)),
            ]
            for lane, seconds in sorted(steady.lanes.items(), key=lambda item: -item[1])
        ],
    )
    if plan.curve:
        points = [[f"{rows:,}", figures.speed(tok_s)] for rows, tok_s in plan.curve]
        yield _table("What more rows would bring", ["rows in flight", "tok/s"], points)
    if plan.gains:
        gains = [[gain.change, figures.speed(gain.tok_s), f"{gain.rows:,}"] for gain in plan.gains]
        yield _table("What would help", ["", "tok/s", "rows"], gains)
    if plan.runners_up:
        others = [
            [other.name, "does not fit" if other.tok_s is None else figures.speed(other.tok_s), other.why]
            for other in plan.runners_up
        ]
        yield _table("Instead", ["", "tok/s", ""], others)


def _table(title: str, head: Row, rows: Sequence[Row]) -> str:
    heading = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "\n".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f"<h2>{escape(title)}</h2>\n<table><tr>{heading}</tr>\n{body}</table>"


def _cell(text: str) -> str:
    """A cell; sentences may wrap and stand to the left."""
    kind = ' class="text"' if len(text) > 24 else ""
    return f"<td{kind}>{escape(text)}</td>"
