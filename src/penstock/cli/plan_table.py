"""A plan as a person reads it: how fast and how long first, then where bytes live, what limits it, what would help."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.cli import figures
from penstock.plan.plan import Alternative, Gain, Plan, Use
from penstock.plan.policy import TIERS, Policy, Shares, Tier
from penstock.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from penstock.plan.baseline import Said

LABEL = 16  # columns of the labels
NOTHING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
_NARROWEST = 40
_WIDEST = 100
_SENTENCE = 20  # columns that one is wrapped to at least
_SAME = 0.005  # a gain, or a share, below this part is none
_UNITS = {"gpu": ("GiB of gpu", 2**30), "cpu": ("GiB of cpu", 2**30), "disk": ("GiB of disk", 2**30)}


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the answer. dim: it is beside the point."""

    text: str
    dim: bool = False


def table(plan: Plan, width: int) -> list[Line]:
    """The lines of the answer, wrapped to so many columns."""
    width = min(max(width, _NARROWEST), _WIDEST)
    parts = [_head, _predicted, _baseline, _memory, _policy, _sweep, _gains, _others]
    sections = [lines for part in parts if (lines := list(part(plan, width)))]
    separated = [line for lines in sections for line in [Line(""), *lines]]
    return separated[1:]


def tiers_of(plan: Plan) -> list[Tier]:
    """The tiers that are there or that something was put on, fastest first."""
    return [t for t in TIERS if t in plan.memory and (plan.memory[t].budget or plan.memory[t].needed)]


def labelled(label: str, text: str, width: int, dim: bool = False) -> Iterator[Line]:
    """A label and a text beside it, wrapped under itself; parts between middle dots stay together where they can."""
    room = max(width - LABEL, 20)
    for number, line in enumerate(_wrapped(text, room)):
        yield Line(f"{label if number == 0 else '':<{LABEL}}{line}", dim)


def _wrapped(text: str, room: int) -> Iterator[str]:
    line = ""
    for part in text.split(" · "):
        longer = f"{line} · {part}" if line else part
        if line and len(longer) > room - 2:  # the dot at its end counts too
            yield f"{line} ·"
            line = part
        else:
            line = longer
        if len(line) > room:
            *whole, line = textwrap.wrap(line, room)
            yield from whole
    if line:
        yield line


def _head(plan: Plan, width: int) -> Iterator[Line]:
    weights = sum(use.weights for use in plan.memory.values())
    yield from labelled("model", f"{plan.model}, {format_bytes(weights)} of weights", width)
    yield from labelled("job", plan.job, width)
    yield from labelled("machine", plan.machine, width)


def _predicted(plan: Plan, width: int) -> Iterator[Line]:
    if not plan.fits:
        short = " · ".join(
            f"{tier} {format_bytes(use.short)} short ({use.short:,} bytes)"
            for tier, use in plan.memory.items()
            if use.short
        )
        yield from labelled("does not fit:", short, width)
    if plan.why_not is not None:
        yield from labelled("cannot run:", plan.why_not, width)
    said, predicted = figures.speed, plan.predicted
    tokens = figures.count(predicted.tokens_out, "token")
    condition = "" if plan.fits and plan.why_not is None else ", if it did"
    yield from labelled(
        "predicted",
        f"{said(predicted.total_tok_s)} tok/s: {tokens} in {format_seconds(predicted.seconds)}{condition}"
        f" · prefill {said(predicted.prefill_tok_s)} tok/s · decode {said(predicted.decode_tok_s)} tok/s",
        width,
    )
    shared = 1 - predicted.prefill_tokens / predicted.tokens_in if predicted.tokens_in else 0.0
    if shared > _SAME:
        begins = f"{figures.share(shared)} of the prompts' tokens are computed once for rows that begin alike"
        yield from labelled("", begins, width)
    if predicted.seconds:
        lane = predicted.binding_lane
        busy = figures.share(predicted.lanes[lane] / predicted.seconds)
        yield from labelled("limited by", f"{figures.link(lane)}, busy {busy} of the time", width)


def _baseline(plan: Plan, width: int) -> Iterator[Line]:
    """FlexGen's model beside the prediction."""
    said = plan.baseline
    if said is None:
        return
    yield from labelled("FlexGen's model", f"this policy: {_flexgen(said.of_policy)}", width)
    if said.best is None:
        yield from labelled("", "finds no placement that fits as many rows", width)
    else:
        policy = said.best.policy
        placed = [("weights", policy.weights), ("KV", policy.kv), ("activations", policy.activations)]
        where = " · ".join(f"{what} {_shares(shares)}" for what, shares in placed)
        attention = f"attention on {'cpu' if policy.cpu_attention else 'gpu'}"
        yield from labelled("", f"its own best: {_flexgen(said.best)} · {where} · {attention}", width)
    for assumed in said.assumes:
        yield from labelled("", f"it takes it that {assumed}", width, dim=True)


def _flexgen(said: "Said") -> str:
    """Its figures for one policy."""
    predicted, policy = said.predicted, said.policy
    lanes = predicted.binding_lanes
    short = " if it did fit" if predicted.short else ""
    return (
        f"{figures.speed(predicted.tok_s)} tok/s{short}, {policy.batch_size} {TIMES} {policy.num_batches} rows · "
        f"prefill held by {lanes['prefill']}, decode by {lanes['decode']}"
    )


def _memory(plan: Plan, width: int) -> Iterator[Line]:
    tiers = tiers_of(plan)
    uses = [plan.memory[tier] for tier in tiers]
    column = min(13, (width - LABEL) // max(len(tiers), 1))
    wide = LABEL + column * len(tiers)

    def row(label: str, cells: Sequence[str], remark: str = "") -> Line:
        return Line(f"{label:<{LABEL}}{''.join(f'{cell:>{column}}' for cell in cells)}{remark}".rstrip())

    def sizes(label: str, nbytes: Sequence[int], remark: str = "") -> Line:
        return row(label, [format_bytes(n) if n else NOTHING for n in nbytes], remark)

    yield row("", tiers)
    read = "   disk: read in place" if any(use.in_place for use in uses) else ""
    yield sizes("weights", [use.weights for use in uses], read if wide + len(read) <= width else "")
    rows = f"   {figures.count(plan.policy.rows, 'row')}"
    yield sizes("KV", [use.kv for use in uses], rows if wide + len(rows) <= width else "")
    yield sizes("activations", [use.activations for use in uses])
    yield sizes("buffers", [use.buffers for use in uses])
    if any(use.taken for use in uses):
        yield sizes("taken already", [use.taken for use in uses])
    yield row("free", [_free(use) for use in uses])
    yield sizes("budget", [use.budget for use in uses])


def _free(use: Use) -> str:
    return f"-{format_bytes(use.short)}" if use.short else format_bytes(use.free) if use.free else NOTHING


def _policy(plan: Plan, width: int) -> Iterator[Line]:
    policy = plan.policy
    placed = [("weights", policy.weights), ("KV", policy.kv), ("activations", policy.activations)]
    yield from labelled("policy", " · ".join(f"{what} {_shares(shares)}" for what, shares in placed), width)
    yield from labelled("", " · ".join(_cut(policy)), width)


def _shares(shares: Shares) -> str:
    there = [tier for tier in TIERS if shares.of(tier) > 0]
    if len(there) == 1:
        return f"on {there[0]}"
    return ", ".join(f"{tier} {figures.share(shares.of(tier))}" for tier in there)


def _cut(policy: Policy) -> Iterator[str]:
    if policy.admission == "static":
        yield f"{policy.num_batches} micro-batches of {figures.count(policy.batch_size or 0, 'row')}, entering together"
    else:
        yield figures.count(policy.rows, "row")
    yield f"{policy.sweep_tokens:,} tokens a sweep"
    yield f"{policy.batch_tokens:,} a call"
    yield figures.count(policy.slots, "page slot")
    if policy.cpu_layers:
        said = figures.count(policy.cpu_layers, "layer")
        yield f"{said} computed on cpu in sweeps of up to {figures.count(policy.most_in_place, 'token')}"
    if policy.attention is not None:
        yield f"attention on {policy.attention}"
    if policy.weight_bits is not None:
        yield f"{policy.weight_bits}-bit weights"
    if policy.lm_head_bits is not None:
        yield f"{policy.lm_head_bits}-bit LM head"
    if policy.kv_bits is not None:
        yield f"{policy.kv_bits}-bit KV"


def _sweep(plan: Plan, width: int) -> Iterator[Line]:
    steady, hidden = plan.predicted.steady, plan.predicted.hidden_tokens
    lanes = sorted(steady.lanes.items(), key=lambda item: -item[1])
    busy = " · ".join(
        f"{figures.link(lane)} {format_seconds(seconds)} ({figures.share(seconds / steady.seconds)})"
        for lane, seconds in lanes
        if seconds > 0 and steady.seconds > 0
    )
    rows, tokens = figures.count(steady.rows, "row"), figures.count(steady.tokens, "token")
    yield from labelled("a sweep takes", f"{format_seconds(steady.seconds)} for {rows}, {tokens} · {busy}", width)
    if 0 < hidden < math.inf:
        yield from labelled("it could carry", _hidden(hidden, steady.tokens), width)


def _hidden(hidden: float, tokens: int) -> str:
    """How far a sweep is from T*, the tokens whose compute takes as long as its pages."""
    if tokens >= hidden:
        return (
            f"no more for the same time: its {tokens:,} tokens compute for longer than its pages take ({hidden:,.0f})"
        )
    return f"{hidden:,.0f} tokens for the same time (T*); it carries {figures.share(tokens / hidden)} of that"


def _gains(plan: Plan, width: int) -> Iterator[Line]:
    now = plan.predicted.total_tok_s
    better = sorted((g for g in plan.gains if g.tok_s > now * (1 + _SAME)), key=lambda gain: -gain.tok_s)
    if better:
        changes = max(len(gain.change) for gain in better)
        for number, gain in enumerate(better):
            cells = f"{gain.change:<{changes}}  {_more(gain, now):>7}   "
            yield from _row("what would help" if number == 0 else "", cells, _rows(gain, plan.policy.rows), width)
    idle = [gain.change for gain in plan.gains if gain.tok_s <= now * (1 + _SAME)]
    if idle:
        yield from labelled("" if better else "what would help", f"no use: {', '.join(idle)}", width)
    duals = [_dual(name, value) for name, value in plan.duals.items() if value > 0]
    if duals:
        yield from labelled("", f"next to the optimum (duals): {' · '.join(duals)}", width, dim=True)


def _more(gain: Gain, now: float) -> str:
    ratio = gain.tok_s / now if now else 0.0
    return f"{TIMES}{ratio:.1f}" if ratio >= 2 or ratio == 0 else f"+{100 * (ratio - 1):.0f} %"


def _rows(gain: Gain, now: int) -> str:
    if gain.rows == now:
        return ""
    return f"{abs(gain.rows - now):,} rows {'more' if gain.rows > now else 'fewer'}"


def _dual(name: str, value: float) -> str:
    """Tokens per second that one more unit of a tier or a link buys."""
    unit, size = _UNITS.get(name, (f"GB/s {figures.link(name)}", 10**9))
    return f"+{figures.speed(value * size)} tok/s per {unit}"


def _others(plan: Plan, width: int) -> Iterator[Line]:
    if plan.runners_up:
        names = max(len(other.name) for other in plan.runners_up)
        for number, other in enumerate(plan.runners_up):
            cells = f"{other.name:<{names}}  {_speed(other):>12}   "
            yield from _row("instead" if number == 0 else "", cells, other.why, width)
    for note in plan.notes:
        yield from labelled("note", note, width)


def _speed(other: Alternative) -> str:
    return "does not fit" if other.tok_s is None else f"{figures.speed(other.tok_s)} tok/s"


def _row(label: str, cells: str, rest: str, width: int) -> Iterator[Line]:
    """A row of a small table whose last cell is a sentence: wrapped under itself, or below where there is no room."""
    indent = LABEL + len(cells)
    if width - indent < min(len(rest), _SENTENCE):
        indent = LABEL + 2
        yield Line(f"{label:<{LABEL}}{cells}".rstrip())
    else:
        first, *others = textwrap.wrap(rest, width - indent) or [""]
        yield Line(f"{label:<{LABEL}}{cells}{first}".rstrip())
        rest = " ".join(others)
    for line in textwrap.wrap(rest, width - indent):
        yield Line(" " * indent + line)
