"""The ways to move layers as a table for people."""

from collections.abc import Iterator, Sequence

from penstock.cli import figures
from penstock.cli.plan_table import NOTHING, TIMES, Line
from penstock.plan.paging import Paged, Way
from penstock.units import format_bytes, format_rate, format_seconds


def paging_table(name: str, machine: str, model: Paged, ways: Sequence[Way], context: int) -> Iterator[Line]:
    """The comparison, in 80 columns."""
    out = f"{model.fast}→{model.slow}"
    yield Line(f"{name} on {machine}, in decode at a context of {figures.count(context, 'token')}")
    yield Line(
        f"{model.layers} layers of {format_bytes(model.layer_bytes)} and {format_bytes(model.row_bytes)} of KV a row; "
        f"{model.slow}→{model.fast} {format_rate(model.inward.bytes_per_s)}, "
        f"{out} {format_rate(model.outward.bytes_per_s)}"
    )
    yield Line("")
    names = max(20, *(len(way.name) for way in ways))
    columns = f"{model.fast:>9} {model.slow:>9} {'a token':>10}{'tok/s':>7}{'slower':>7}{'twice':>9}{'even':>7}"
    yield Line(f"{'':<{names}}{columns}")
    for way in ways:
        yield Line(f"{way.name:<{names}}{_memory(way, model)}{_figures(way)}".rstrip())
    yield Line("")
    if not all(way.fits for way in ways):
        yield Line("*        more than this machine, or its budget, has")
    yield Line(f"slower   than the same rows with everything on {model.fast}")
    yield Line("twice    time of a token if weights and KV were moved both ways for each, as")
    yield Line("         first estimates have it; but weights are never written back")
    yield Line("even     the fewest rows whose sweep computes for longer than its layers move")


def _memory(way: Way, model: Paged) -> str:
    cells = []
    for tier in (model.fast, model.slow):
        nbytes = way.memory[tier]
        mark = "*" if nbytes > model.memory.get(tier, 0) else " "
        cells.append(f"{format_bytes(nbytes) if nbytes else NOTHING}{mark}")
    return "".join(f"{cell:>10}" for cell in cells)


def _figures(way: Way) -> str:
    if way.token_s is None or way.tok_s is None or way.slowdown is None:
        return f"   {way.remark}"
    even = "never" if way.break_even_rows is None else f"{way.break_even_rows:,}" if way.break_even_rows else NOTHING
    twice = _time(way.first_s) if way.first_s is not None and way.break_even_rows != 0 else NOTHING
    now = f"{_time(way.token_s):>10}{figures.speed(way.tok_s):>7}{_ratio(way.slowdown):>7}"
    return f"{now}{twice:>9}{even:>7}"


def _ratio(value: float) -> str:
    return f"{value:,.0f}{TIMES}" if value >= 9.95 else f"{value:.1f}{TIMES}"


def _time(seconds: float) -> str:
    """As ``format_seconds``, with digits where a token takes less than ten milliseconds."""
    return f"{seconds * 1000:.2g} ms" if seconds < 0.00995 else format_seconds(seconds)
