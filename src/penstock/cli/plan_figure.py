"""A plan drawn: where bytes rest, what each lane does in a sweep, and what more rows would bring."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import drawing
from penstock.cli import figures
from penstock.cli.plan_table import TIMES, tiers_of
from penstock.plan.plan import Plan, SteadySweep, Use
from penstock.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS = {
    "weights": "#44546A",
    "KV": "#A86A9D",
    "activations": "#D9B3CF",
    "buffers": "#9DB4C8",
    "taken already": "#8C8C8C",
    "free": "#E8E8E8",
}
# Okabe and Ito's colours, which people with any colour vision tell apart; none of them stands for a kind of bytes
_LANES = {
    "disk→cpu": "#D55E00",
    "cpu→disk": "#E69F00",
    "cpu→gpu": "#0072B2",
    "gpu→cpu": "#56B4E9",
    "gpu-compute": "#009E73",
    "cpu-compute": "#117733",
}
_OTHER, _IDLE, _INK = "#666666", "#E8E8E8", drawing.INK
_DARK = ("weights", "KV", "taken already")
_LEGIBLE, _WIDE = 0.085, 0.35  # parts of a bar that a figure, and a sentence, fit in
_COMPUTE = "-compute"
_INCHES = (11.0, 10.0)


def draw(plan: Plan, path: Path) -> None:
    """Write the figures of a plan: ``.png`` or ``.svg``, or ``.html`` with the tables beside them.

    Raises UserError where the file cannot be written.
    """
    if path.suffix.lower() != ".html":
        drawing.save(figure(plan), path)
        return
    from penstock.cli.plan_page import page

    with drawing.written(path):
        path.write_text(page(plan, svg(plan)), encoding="utf-8")


def svg(plan: Plan) -> str:
    """The figure as SVG, the same for the same plan."""
    return drawing.svg(figure(plan))


def figure(plan: Plan) -> "Figure":
    """The three panels."""
    from matplotlib.figure import Figure

    lanes = sum(1 for seconds in plan.predicted.steady.lanes.values() if seconds > 0)
    heights = [0.9 + len(tiers_of(plan)), 0.9 + max(lanes, 2), 6.0]
    with drawing.style():
        drawn = Figure(figsize=_INCHES, layout="constrained")
        placement, timeline, throughput = drawn.subplots(3, 1, height_ratios=heights)
        drawn.suptitle(f"{plan.model} · {plan.job}\n{plan.machine}", x=0.01, ha="left", fontsize=10)
        _placement(placement, plan)
        _timeline(timeline, plan.predicted.steady)
        _throughput(throughput, plan)
    return drawn


def _placement(axes: "Axes", plan: Plan) -> None:
    """A bar per tier, in parts of its budget: tiers differ by orders of magnitude."""
    from matplotlib.patches import Patch

    tiers = tiers_of(plan)
    used = {kind for row, tier in enumerate(tiers) for kind in _bar(axes, row, plan.memory[tier])}
    if not plan.fits:
        axes.axvline(1.0, color=_INK, linewidth=1.2)
    axes.set_yticks(range(len(tiers)), [f"{tier}\n{format_bytes(plan.memory[tier].budget)}" for tier in tiers])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel("of each tier's budget")
    axes.margins(x=0 if plan.fits else 0.15)
    axes.set_xlim(left=0)
    axes.set_title("Where does every byte rest?", loc="left")
    _legend(axes, [Patch(color=colour, label=kind) for kind, colour in _KINDS.items() if kind in used])


def _bar(axes: "Axes", row: int, use: Use) -> Iterator[str]:
    """One tier's bar; the kinds of bytes in it. What is too narrow for its figure has it in the free part, if that is
    wide."""
    parts = {
        "taken already": use.taken,
        "weights": use.weights - use.in_place,
        "KV": use.kv,
        "activations": use.activations,
        "buffers": use.buffers,
        "free": use.free,
    }
    whole, start = max(use.budget, 1), 0.0
    small = [f"{format_bytes(use.in_place)} weights read in place"] if use.in_place else []
    for kind, nbytes in parts.items():
        if not nbytes:
            continue
        yield kind
        share, size = nbytes / whole, format_bytes(nbytes)
        axes.barh(row, share, left=start, height=0.62, color=_KINDS[kind], edgecolor="white", linewidth=0.6)
        if kind == "free" and share > _WIDE:
            size = " · ".join([*small, f"{size} free"])
        if share > _LEGIBLE:
            ink = "white" if kind in _DARK else _INK
            axes.text(start + share / 2, row, size, ha="center", va="center", fontsize=9, color=ink)
        else:
            small.append(f"{size} {kind}")
        start += share
    if use.short:
        short = f" {format_bytes(use.short)} short"
        axes.text(start, row, short, va="center", color=_LANES["disk→cpu"], weight="bold")


def _legend(axes: "Axes", handles: "Sequence[Artist]", length: float = 1.0) -> None:
    """What colours and lines mean, above the panel, where nothing crosses it."""
    axes.legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(handles), frameon=False, fontsize=9,
        handlelength=length, columnspacing=1.2,
    )  # fmt: skip


def _timeline(axes: "Axes", sweep: SteadySweep) -> None:
    """How long each lane is busy in a sweep of the middle of the job, beside how long the sweep takes."""
    unit, name = (1.0, "s") if sweep.seconds >= 1 else (1000.0, "ms")
    lanes = sorted(((lane, s) for lane, s in sweep.lanes.items() if s > 0), key=lambda item: -item[1])
    whole = sweep.seconds * unit
    for row, (lane, seconds) in enumerate(lanes):
        busy = seconds * unit
        axes.barh(row, whole, height=0.62, color=_IDLE)
        axes.barh(row, busy, height=0.62, color=_LANES.get(lane, _OTHER))
        part = figures.share(seconds / sweep.seconds) if sweep.seconds else ""
        label = f"{format_seconds(seconds)}, {part}"
        inside = busy > 0.2 * whole
        axes.text(
            busy - 0.01 * whole if inside else busy + 0.01 * whole, row, label,
            ha="right" if inside else "left", va="center", fontsize=9, color="white" if inside else _INK,
        )  # fmt: skip
    axes.axvline(whole, color=_INK, linewidth=1.2)
    axes.set_yticks(range(len(lanes)), [figures.link(lane) for lane, _ in lanes])
    axes.set_ylim(max(len(lanes), 2) - 0.5, -0.5)
    axes.set_xlim(0, whole * 1.02 or 1.0)
    axes.set_xlabel(f"{name} of a sweep of {format_seconds(sweep.seconds)}: busy in colour, idle in grey")
    binding = figures.link(lanes[0][0]) if lanes else "nothing"
    axes.set_title(f"What does a sweep wait for? {binding} most", loc="left")


@dataclass(frozen=True, slots=True)
class Roof:
    """What no number of rows can exceed: tokens generated per second while pages stream, and while all compute.

    stream_s: of a sweep, of its busiest link. computed: tokens computed for each that is generated. hidden: T*.
    """

    stream_s: float
    computed: float
    hidden: float

    @classmethod
    def of(cls, plan: Plan) -> "Roof | None":
        """The roof of a plan; None where nothing streams."""
        predicted = plan.predicted
        links = [s for lane, s in predicted.steady.lanes.items() if not lane.endswith(_COMPUTE)]
        stream, hidden = max(links, default=0.0), predicted.hidden_tokens
        if stream <= 0 or not 0 < hidden < math.inf or not predicted.tokens_out:
            return None
        computed = (predicted.prefill_tokens + predicted.decode_tokens) / predicted.tokens_out
        return cls(stream, computed, hidden)

    @property
    def knee(self) -> float:
        """Rows in flight whose tokens, with the prompts of those that follow them, are T*."""
        return self.hidden / self.computed

    def at(self, rows: float) -> float:
        """Tokens per second at most with so many rows in flight: each gets one in a sweep."""
        return min(rows, self.knee) / self.stream_s


def _throughput(axes: "Axes", plan: Plan) -> None:
    """Predicted throughput over rows in flight, below the roof of its links and its processor."""
    here = (plan.policy.rows, plan.predicted.total_tok_s)
    curve = [point for point in plan.curve if point[0] > 0 and point[1] > 0]
    roof = Roof.of(plan)
    colour = _LANES.get(plan.predicted.binding_lane, _OTHER)
    lines: list[Artist] = []
    if roof is not None:
        low = min([rows for rows, _ in curve] + [here[0]])
        high = max([rows for rows, _ in curve] + [here[0], 3 * roof.knee])
        corners = sorted({float(low), max(float(low), roof.knee), float(high)})
        label = "roof of this plan's pages, then of compute"
        at = [roof.at(x) for x in corners]
        lines += axes.plot(corners, at, color=_INK, linewidth=1.2, linestyle=(0, (5, 3)), label=label)
        axes.axvline(roof.knee, color=_OTHER, linewidth=1.0, linestyle=":")
        axes.annotate(
            f"T* = {roof.hidden:,.0f} tokens a sweep,\nreached with about {roof.knee:,.0f} rows",
            (roof.knee, 0.04), xycoords=("data", "axes fraction"), xytext=(-6, 0), textcoords="offset points",
            ha="right", fontsize=9,
        )  # fmt: skip
    if curve:
        lines += axes.plot(*zip(*curve, strict=True), color=colour, linewidth=2.2, label="predicted")
    if lines:
        _legend(axes, lines[::-1], 2.2)
    axes.plot([here[0]], [here[1]], marker="o", markersize=9, color=colour, markeredgecolor="white")
    many = len(curve) > 1 and here[0] ** 3 > curve[0][0] * curve[-1][0] ** 2  # in the right third: the text goes left
    axes.annotate(
        f"this plan: {figures.speed(here[1])} tok/s with {figures.count(here[0], 'row')}",
        here, xytext=(8, -24) if many else (10, -16), textcoords="offset points", ha="right" if many else "left",
        fontsize=10, weight="bold", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.85},
    )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axes.grid(True, which="major", color="#EEEEEE")
    axes.set_xlabel("rows in flight")
    axes.set_ylabel("tokens generated per second")
    axes.set_title(f"What would more rows bring? {_brings(plan, roof)}", loc="left")


def _brings(plan: Plan, roof: Roof | None) -> str:
    """The answer in the title."""
    now = plan.predicted.total_tok_s
    rows, most = max(plan.curve, key=lambda point: point[1], default=(plan.policy.rows, now))
    if now and most > 1.05 * now:
        return f"{TIMES}{most / now:.1f} with {rows:,} of them"
    return "Nothing streams, so they share no pages" if roof is None else "Next to nothing"
