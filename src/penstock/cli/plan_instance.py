"""``penstock plan --instance``: a bare linear program solved, with given answers priced beside the optimum."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from penstock.cli import figures
from penstock.plan.policy import TIERS
from penstock.units import format_rate

if TYPE_CHECKING:
    from penstock.plan.instance import Solved
    from penstock.plan.linear import Optimum, Price, SharesOf

_LABEL = 18  # columns of the labels
_COLUMN = 11
_MEGABYTE = 10**6
_NAMES = {"weights": "weights", "kv": "KV", "activations": "activations"}


def run_instance(path: Path, as_json: bool) -> None:
    """Print an instance's optimum and the price of its answers. Raises UserError where the file is wrong or nothing
    fits."""
    from penstock.plan.instance import solve_instance
    from penstock.plan.instance_file import read_instance

    solved = solve_instance(read_instance(path))
    if as_json:
        print(json.dumps(account(solved), ensure_ascii=False))
        return
    for line in table(solved):
        typer.echo(line)


def account(solved: "Solved") -> dict[str, Any]:
    """All of it as plain values. Seconds are of one layer, but for total_s; ratio is None where the optimum takes 0."""
    instance, optimum = solved.instance, solved.optimum
    return {
        "instance": instance.name,
        "layers": instance.layers,
        "sizes_bytes": dict(instance.sizes),
        "memory_bytes": dict(instance.memory),
        "links_bytes_per_s": dict(instance.links),
        "optimum": {
            **_priced(optimum.shares, optimum.seconds, optimum.lanes, instance.layers),
            "duals": {"s_per_byte": dict(optimum.byte_duals), "lanes": dict(optimum.lane_duals)},
        },
        "answers": [
            {
                "name": name,
                **_priced(instance.answers[name], answer.seconds, answer.lanes, instance.layers),
                "fits": not answer.short,
                "short_bytes": dict(answer.short),
                "ratio": solved.ratio(name),
            }
            for name, answer in solved.answers.items()
        ],
        "notes": list(instance.notes),
    }


def _priced(shares: "SharesOf", seconds: float, lanes: Mapping[str, float], layers: int) -> dict[str, Any]:
    return {
        "shares": {name: dict(parts) for name, parts in shares.items()},
        "layer_s": seconds,
        "total_s": seconds * layers,
        "lanes_s": dict(lanes),
        "binding_lane": _binding(lanes),
    }


def table(solved: "Solved") -> Iterator[str]:
    """The lines of the answer: how long first, then the instance, the placements, the lanes and what would help."""
    yield from _head(solved)
    yield ""
    yield from _given(solved)
    yield ""
    yield from _placements(solved)
    yield ""
    yield from _lanes(solved)
    yield ""
    yield from _duals(solved)
    for note in solved.instance.notes:
        yield _labelled("note", note)


def _head(solved: "Solved") -> Iterator[str]:
    optimum = solved.optimum
    yield _labelled("optimum", f"{_ms(optimum.seconds)} ms a layer: {_limit(optimum.lanes)}")
    for name, answer in solved.answers.items():
        ratio = solved.ratio(name)
        times = ", and the optimum takes none" if ratio is None else f", {_digits(ratio)}× the optimum"
        yield _labelled(name, f"{_ms(answer.seconds)} ms a layer{times}: {_limit(answer.lanes)}")
        if answer.short:
            short = " · ".join(f"{tier} {_size(nbytes)} short" for tier, nbytes in answer.short.items())
            yield _labelled("", f"does not fit: {short}")


def _given(solved: "Solved") -> Iterator[str]:
    instance = solved.instance
    sizes = " · ".join(f"{_NAMES[name]} {_size(nbytes)}" for name, nbytes in instance.sizes.items())
    yield _labelled("instance", f"{instance.name}, {figures.count(instance.layers, 'layer')}")
    yield _labelled("a layer", sizes)
    memory = [f"{tier} {'unlimited' if n is None else _size(n)}" for tier, n in instance.memory.items()]
    yield _labelled("memory", " · ".join(memory))
    rates = [f"{link} {format_rate(rate)}" for link, rate in instance.links.items()]
    rates += [f"compute {_ms(instance.compute_s)} ms a layer"] if instance.compute_s else []
    if rates:
        yield _labelled("links", " · ".join(rates))
    if "disk→cpu" in instance.links and "cpu→gpu" in instance.links:
        does = "crosses" if instance.disk_through_cpu else "does not cross"
        yield _labelled("", f"what rests on disk {does} cpu→gpu")


def _placements(solved: "Solved") -> Iterator[str]:
    tiers = [tier for tier in TIERS if tier in solved.instance.memory]
    yield _row("", tiers)
    for title, shares in {"optimum": solved.optimum.shares, **solved.instance.answers}.items():
        yield title
        for name, parts in shares.items():
            yield _row(f"  {_NAMES[name]}", [_percent(parts.get(tier, 0.0)) for tier in tiers])


def _lanes(solved: "Solved") -> Iterator[str]:
    names = list(solved.optimum.lanes)
    yield _row("ms a layer", [*names, "busiest", "all layers"])
    priced: dict[str, Optimum | Price] = {"optimum": solved.optimum, **solved.answers}
    for title, answer in priced.items():
        lanes = [_ms(answer.lanes[name]) for name in names]
        yield _row(title, [*lanes, _ms(answer.seconds), _ms(answer.seconds * solved.instance.layers)])


def _duals(solved: "Solved") -> Iterator[str]:
    """What the program's duals say, near the optimum."""
    optimum = solved.optimum
    helps = {tier: dual for tier, dual in optimum.byte_duals.items() if dual > 0}
    yield _labelled(
        "one more MB",
        " · ".join(f"on {tier} saves {_ms(dual * _MEGABYTE)} ms a layer" for tier, dual in helps.items())
        or "saves nothing on any tier",
    )
    if optimum.seconds:
        bind = [f"{lane} {figures.share(dual)}" for lane, dual in optimum.lane_duals.items() if dual > 0]
        yield _labelled("what binds", " · ".join(bind))


def _limit(lanes: Mapping[str, float]) -> str:
    lane = _binding(lanes)
    return f"{lane} binds" if lane else "nothing moves"


def _binding(lanes: Mapping[str, float]) -> str | None:
    """The busiest lane; None where no lane is busy."""
    lane = max(lanes, key=lambda name: lanes[name])
    return lane if lanes[lane] > 0 else None


def _size(nbytes: int) -> str:
    """A size in decimal units, as instances are written: ``25.2 MB``."""
    return format_rate(nbytes).removesuffix("/s")


def _ms(seconds: float) -> str:
    return _digits(1000 * seconds)


def _digits(value: float) -> str:
    """A number in three digits, never with an exponent where it is large: ``2.6``, ``0.78``, ``12,345``."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def _percent(part: float) -> str:
    return f"{f'{100 * part:.1f}'.removesuffix('.0')} %" if part else "–"


def _row(label: str, cells: Sequence[str]) -> str:
    return f"{_padded(label)}{''.join(f'{cell:>{_COLUMN}}' for cell in cells)}".rstrip()


def _labelled(label: str, text: str) -> str:
    return f"{_padded(label)}{text}"


def _padded(label: str) -> str:
    """A label in its columns, cut short where it would not end before them."""
    shown = label if len(label) < _LABEL else f"{label[: _LABEL - 2]}…"
    return f"{shown:<{_LABEL}}"
