"""``penstock profile``: what this host does per second."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import figures, options
from penstock.errors import UserError
from penstock.units import format_bytes, format_rate, format_seconds

if TYPE_CHECKING:
    from penstock.machine.machine import Curve, Processor
    from penstock.model.pages import Extent
    from penstock.profiling.profile import Profile

EXAMPLES = """\
Examples:
  penstock profile
  penstock profile --force --offload-dir scratch
  penstock profile ./llama-70b          the disk that this checkpoint lies on
  penstock profile --show --json > profile.json
"""

_START_S = 3.0  # of Python itself, and of its end

PROFILE = "Profile"

Checkpoint = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="read this model's files to measure their disk",
        show_default=False,
        callback=options.named_model,
    ),
]
Show = Annotated[bool, options.option(PROFILE, "--show", "print the stored profile and measure nothing")]
Force = Annotated[bool, options.option(PROFILE, "--force", "measure again, whatever is stored")]
Short = Annotated[bool, options.option(PROFILE, "--short", "in 15 seconds instead of 60, by fewer sizes")]


def profile(
    model: Checkpoint = None,
    show: Show = False,
    force: Force = False,
    short: Short = False,
    offload_dir: options.OffloadDir = None,
    json_: options.Json = False,
) -> None:
    """Measure what this host computes, copies and reads per second, or show what was measured."""
    started = time.perf_counter() - _START_S
    if show and (force or short):
        raise UserError("--show measures nothing: leave --force and --short out")

    from penstock.profiling.profile_file import load_profile, profile_path, save_profile, to_json

    stored = None if force else load_profile()
    if show and stored is None:
        raise UserError(f"nothing is measured yet ({profile_path()} does not exist): penstock profile measures")
    if show and stored is not None:
        found = stored
        if reasons := _stale(stored):
            _note(f"plans and runs do not use this: {'; '.join(reasons)} (penstock profile measures again)", json_)
    else:
        found = _current(stored, model, short, offload_dir, json_, started)
    if found is not stored:
        save_profile(found)
    if json_:
        print(to_json(found))
        return
    for line in lines(found):
        typer.echo(line.rstrip())


def _current(
    stored: "Profile | None",
    model: str | None,
    short: bool,
    offload_dir: str | None,
    as_json: bool,
    started: float,
) -> "Profile":
    """The stored profile where it holds; with disks that it lacks, or measured again, where it does not.

    started: since when the long form's minute runs, which importing libraries is part of.
    """
    extents = _extents(model)

    from penstock.memory.offload import offload_root
    from penstock.profiling.measure import LONG, SHORT, measure_profile, with_disks

    root = offload_root(offload_dir)
    form = SHORT if short else replace(LONG, budget_s=LONG.budget_s - (time.perf_counter() - started))
    reasons = _stale(stored) if stored else []
    if stored and not short and stored.form == "short":
        reasons.append("that was the short form")
    if stored is None or reasons:
        if reasons:
            _note(f"measuring again: {'; '.join(reasons)}", as_json)
        with _progress(as_json) as progress:
            return measure_profile(extents or None, root, form, progress)
    _note(f"measured {_ago(stored.measured)}; --force measures again", as_json)
    if lacking := stored.lacks(Path(extents[0].path) if extents else None, root):
        _note(f"measuring the disk of {' and '.join(map(str, lacking))} too", as_json)
        with _progress(as_json) as progress:
            return with_disks(stored, extents or None, root, form, progress)
    return stored


def _stale(stored: "Profile") -> list[str]:
    """Why a profile does not speak of this host; torch is imported, to look for its gpu."""
    from penstock.profiling.profile import Host, gpu_name, stale_reasons

    return stale_reasons(stored, Host.here(gpu_name()))


def _extents(model: str | None) -> "Sequence[Extent]":
    if model is None:
        return []

    from penstock.model.source import resolve
    from penstock.profiling.checkpoint import checkpoint_extents

    return checkpoint_extents(resolve(model))


def _note(text: str, as_json: bool) -> None:
    typer.echo(json.dumps({"kind": "note", "text": text}) if as_json else text, err=True)


@contextmanager
def _progress(as_json: bool) -> Iterator[Callable[[str, float, float], None]]:
    """A bar on a terminal, a line for each measurement elsewhere, JSON lines for programs; on stderr."""
    if as_json or not sys.stderr.isatty():

        def line(what: str, done_s: float, total_s: float) -> None:
            event = {"kind": "load", "what": what, "done": done_s, "total": total_s, "unit": "s"}
            typer.echo(json.dumps(event) if as_json else f"{what} ({figures.seconds_of(done_s, total_s)})", err=True)

        yield lambda what, done_s, total_s: line(what, done_s, total_s) if what else None
        return

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        BarColumn(30),
        TextColumn("{task.elapsed:.0f} s of about {task.total:.0f}"),  # goes on between measurements
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("", visible=False)
        yield lambda what, done_s, total_s: bar.update(
            task, description=what, completed=done_s, total=total_s, visible=True
        )


def lines(profile: "Profile") -> Iterator[str]:
    """The profile as a table."""
    host, machine = profile.host, profile.machine
    said = ", ".join(f"{package} {number}" for package, number in profile.versions.items())
    gpu = f", {host.gpu}" if host.gpu else ""
    yield f"this host       {host.cpu}, {host.cores} cores, {format_bytes(host.memory_bytes)}{gpu}"
    took = f"{profile.form} form, in {format_seconds(profile.seconds)}"
    yield f"measured        {_ago(profile.measured)}, {took} ({said})"
    for tier, processor in machine.processors.items():
        yield ""
        yield from _processor(tier, processor)
    yield ""
    for name, link in machine.links.items():
        unsteady = f", give or take {link.jitter:.0%} a page" if link.jitter else ""
        yield f"{name:<16}{format_rate(link.bytes_per_s):<12}{_small(link.latency_s)} latency{unsteady}"
    for mount, disk in profile.disks.items():
        parts = [f"read {format_rate(disk.read.bytes_per_s)}"]
        if disk.write and disk.kv_read and disk.kv_write:
            parts.append(f"written {format_rate(disk.write.bytes_per_s)}")
            parts.append(f"KV blocks read {format_rate(disk.kv_read)}, written {format_rate(disk.kv_write)}")
        yield f"{'disk at ' + mount:<16}{', '.join(parts)}"
    yield (
        f"together        compute loses {machine.compute_loses:.0%} of its speed while the disk reads,"
        f" the disk {machine.disk_loses:.0%}"
    )


def _processor(tier: str, processor: "Processor") -> Iterator[str]:
    """Products and attention by size, in GFLOP/s, and the rest."""
    yield from _curves(f"{tier} products", "tokens of a call", processor.products)
    yield from _curves(f"{tier} attention", "query tokens", {"": processor.attention})
    rates = format_rate(processor.kv_bytes_per_s), format_rate(processor.activation_bytes_per_s)
    yield f"{'':<16}keys and values read at {rates[0]}; between products {rates[1]}"
    costs = (
        f"{_small(processor.visit_s)} a call and page, {_small(processor.sweep_s)} a sweep,"
        f" {_small(processor.row_s)} a drawn row, {processor.logit_s * 1e9:.2g} ns a logit"
    )
    yield f"{'':<16}besides: {costs}"
    if processor.attention_row_s:
        yield f"{'':<16}attention besides: {_small(processor.attention_row_s)} a row and layer in decode"
    # profiles of before these were measured hold what costs nothing
    rest = [f"{_small(processor.expert_s)} an expert that a call touches"] if processor.expert_s else []
    if processor.product_s:
        starts = ", ".join(f"{name} {_small(seconds)}" for name, seconds in processor.product_s.items())
        yield f"{'':<16}each product besides: {starts}"
    if math.isfinite(processor.dequantise_per_s):
        rest.append(f"{processor.dequantise_per_s / 1e9:.2g} G elements of 4 bits unpacked a second")
    if rest:
        yield f"{'':<16}{'; '.join(rest)}"
    if math.isfinite(processor.fresh_bytes_per_s):
        yield f"{'':<16}new memory written at {format_rate(processor.fresh_bytes_per_s)}"


def _curves(title: str, sizes: str, curves: "Mapping[str, Curve]") -> Iterator[str]:
    """A row of sizes, and one of GFLOP/s for each curve."""
    columns = sorted({size for curve in curves.values() for size, _ in curve.points})
    table = {(title, sizes): [f"{size:,.0f}" for size in columns]}
    for name, curve in curves.items():
        measured = dict(curve.points)
        cells = [_gflops(measured[size]) if size in measured else "" for size in columns]
        table["GFLOP/s" if len(table) == 1 else "", name] = cells
    width = 2 + max(len(cell) for cells in table.values() for cell in cells)
    for (label, name), cells in table.items():
        yield f"{label:<16}{name:<16}" + "".join(f"{cell:>{width}}" for cell in cells)


def _gflops(flops: float) -> str:
    return f"{flops / 1e9:,.0f}" if flops >= 1e10 else f"{flops / 1e9:.2g}"


def _small(seconds: float) -> str:
    """A short time: ``310 µs``, ``1.2 ms``."""
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def _ago(when: datetime) -> str:
    """How long ago, and when: ``2 d 04 h ago (2026-11-21)``."""
    return f"{format_seconds(max(0.0, (datetime.now(UTC) - when).total_seconds()))} ago ({when:%Y-%m-%d})"
