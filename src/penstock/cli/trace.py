"""``penstock trace``: make, record, import and look at skip traces: what tokens each step of a decode passes over."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import figures, options, trace_record
from penstock.cli.console import stderr_display
from penstock.cli.overwrites import refuse_nowhere, refuse_overwriting
from penstock.cli.trace_table import percent, table
from penstock.directories import shown
from penstock.errors import UserError
from penstock.units import format_bytes

if TYPE_CHECKING:
    from penstock.trace.coded import CodedTrace

EXAMPLES = """\
\b
Examples:
  penstock trace synth made.skip --prefill-tokens 2048 --steps 1024 --layers 32 --skip 0.3
  penstock trace record demo -i book.txt --prompt-tokens 600 --max-tokens 257 --output book.skip
  penstock trace import study.txt study.skip --prefill-tokens 1024
  penstock trace info made.skip --plot made.png
  penstock simulate mine.toml --trace book.skip
"""

SYNTH_EXAMPLES = """\
Examples:
  penstock trace synth made.skip --prefill-tokens 2048 --steps 1024 --layers 32 --skip 0.3
  penstock trace synth calm.skip --prefill-tokens 30000 --steps 4096 --layers 32 --skip 0.6 --overlap 0.97
  penstock trace synth study.skip --scenario seed-004-mha --skip 0.6
"""

IMPORT_EXAMPLES = """\
Examples:
  penstock trace import study.txt study.skip --prefill-tokens 1024
  penstock trace import study.txt study.skip --prefill-tokens 1024 --first-step 0

A line is n,l,s,[ids],skip_layer: the step that writes token n skips the tokens of these ids at layer l (s = 0), or
all of them (skip_layer = 1 or True). Lines of s = 1 are about the MLP, which reads no tokens.
"""

INFO_EXAMPLES = """\
Examples:
  penstock trace info made.skip
  penstock trace info made.skip --plot made.svg
  penstock trace info made.skip --json
"""

_SHOWN_AFTER_S = 0.5  # what takes no time needs no progress, and a mistake found at once stands alone

SIZE = "Size of the trace"
CHAIN = "How it skips"

app = typer.Typer(
    name="trace",
    help="Make, record, import and look at skip traces: what tokens each step of a decode passes over at each layer.",
    epilog=EXAMPLES,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=options.HELP,
)

TraceFile = Annotated[str, typer.Argument(metavar="FILE", help="the trace to write", show_default=False)]
MadeTrace = Annotated[str, typer.Argument(metavar="FILE", help="a trace", show_default=False)]
TextFile = Annotated[str, typer.Argument(metavar="TEXT", help="lines of n,l,s,[ids],skip_layer", show_default=False)]
ScenarioName = Annotated[
    str | None,
    options.option(
        SIZE,
        "--scenario",
        "take sizes and rates from a scenario of penstock simulate, its name or file",
        metavar="NAME",
    ),
]
_PREFILL = "tokens that are there before the first decode step"
PrefillTokens = Annotated[int, options.option(SIZE, "--prefill-tokens", _PREFILL, metavar="N", min=0)]
MadePrefillTokens = Annotated[int | None, options.option(SIZE, "--prefill-tokens", _PREFILL, metavar="N", min=0)]
Steps = Annotated[int | None, options.option(SIZE, "--steps", "decode steps", metavar="N", min=1)]
Layers = Annotated[int | None, options.option(SIZE, "--layers", "layers of the model", metavar="N", min=1)]
ImportLayers = Annotated[
    int | None, options.option(SIZE, "--layers", "layers of the model (default: those in TEXT)", metavar="N", min=1)
]
FirstStep = Annotated[
    int | None,
    options.option(
        SIZE, "--first-step", "what TEXT calls the first decode step (default: that of --prefill-tokens)",
        metavar="N", min=0,
    ),
]  # fmt: skip
Skip = Annotated[float, options.option(CHAIN, "--skip", "share of tokens that a step skips, 0 to 1", metavar="X")]
Overlap = Annotated[
    float | None,
    options.option(
        CHAIN, "--overlap", "share of the tokens read in a step that the next reads too (default: 0.9)", metavar="X"
    ),
]
Correlation = Annotated[
    float | None,
    options.option(CHAIN, "--correlation", "between any two layers' skipping of a token (default: 0.5)", metavar="X"),
]
Sinks = Annotated[
    int | None,
    options.option(
        CHAIN, "--sinks", "first tokens, never skipped (default: 4; 0 with --skip 1)", metavar="N", min=0
    ),
]  # fmt: skip
Recent = Annotated[
    int | None,
    options.option(
        CHAIN, "--recent", "latest tokens, never skipped (default: 16; 0 with --skip 1)", metavar="N", min=0
    ),
]  # fmt: skip
Seed = Annotated[
    int | None, options.option(CHAIN, "--seed", "the same seed makes the same trace (default: 0)", metavar="N", min=0)
]
Plot = Annotated[
    str | None,
    options.option(options.OUTPUT, "--plot", "draw skipping and overlap: a .png or .svg", metavar="FILE"),
]
Json = Annotated[bool, options.option(options.OUTPUT, "--json", "print one JSON value")]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("synth", cls=options.Command, epilog=SYNTH_EXAMPLES, short_help="make a trace of a chosen skip level")
def synth(
    file: TraceFile,
    skip: Skip,
    scenario: ScenarioName = None,
    prefill_tokens: MadePrefillTokens = None,
    steps: Steps = None,
    layers: Layers = None,
    overlap: Overlap = None,
    correlation: Correlation = None,
    sinks: Sinks = None,
    recent: Recent = None,
    seed: Seed = None,
    json_: Json = False,
) -> None:
    """Make a trace in which every token at every layer is skipped and read again at random, at a chosen rate."""
    from penstock.trace.skip_trace import TraceShape
    from penstock.trace.synth import synth as make

    refuse_overwriting({"FILE": file}, {"--scenario": scenario})
    sizes = {"prefill_tokens": prefill_tokens, "steps": steps, "layers": layers}
    rates = {"overlap": overlap, "correlation": correlation, "sinks": sinks, "recent": recent, "seed": seed}
    if scenario is not None:
        its_sizes, its_rates = _of_scenario(scenario)
        sizes, rates = _given_or(sizes, its_sizes), _given_or(rates, its_rates)
    if missing := [f"--{name.replace('_', '-')}" for name, size in sizes.items() if size is None]:
        raise UserError(f"{' and '.join(missing)} must be given, or --scenario, which says all sizes")
    shape = TraceShape(**{name: size for name, size in sizes.items() if size is not None})
    rules: dict[str, Any] = {name: rate for name, rate in rates.items() if rate is not None}
    with _progress("drawing skips", shape.step_bytes, json_) as progress:
        trace = make(shape, skip, path=Path(file), progress=progress, **rules)
    _say_written(file, trace, [f"{percent(trace.realised_skip)} skipped ({percent(skip)} asked)"], json_)


app.command("record", cls=options.Command, epilog=trace_record.EXAMPLES, short_help="record a trace from a real run")(
    trace_record.record
)


@app.command("import", cls=options.Command, epilog=IMPORT_EXAMPLES, short_help="read a trace from lines of text")
def import_(
    text: TextFile,
    file: TraceFile,
    prefill_tokens: PrefillTokens,
    layers: ImportLayers = None,
    first_step: FirstStep = None,
    json_: Json = False,
) -> None:
    """Turn a trace of text, a line for each step, layer and sublayer, into a trace file."""
    from penstock.trace.text import import_text

    refuse_overwriting({"FILE": file}, {"TEXT": text})
    with _progress(f"reading {Path(text).name}", 1, json_) as progress:
        found = import_text(
            Path(text),
            Path(file),
            prefill_tokens=prefill_tokens,
            layers=layers,
            first_step=first_step,
            progress=progress,
        )
    notes = [f"{percent(found.trace.realised_skip)} skipped"]
    if found.mlp_lines:
        notes.append(f"{figures.count(found.mlp_lines, 'MLP')} skipped in the text, which a trace does not hold")
    _say_written(file, found.trace, notes, json_)


@app.command("info", cls=options.Command, epilog=INFO_EXAMPLES, short_help="say what a trace holds")
def info(file: MadeTrace, plot: Plot = None, json_: Json = False) -> None:
    """Say how much a trace skips, how alike consecutive read sets are, and how its layers differ."""
    from penstock.trace.coded import CodedTrace
    from penstock.trace.info import inspect

    if plot is not None:
        if Path(plot).suffix.lower() not in (".png", ".svg"):
            raise UserError(f"--plot {plot} is neither .png nor .svg: name a file of one of these kinds")
        refuse_nowhere("--plot", plot)
        refuse_overwriting({"--plot": plot}, {"FILE": file})
    trace = CodedTrace.open(file)
    with _progress("counting", trace.shape.step_bytes, json_) as progress:
        found = inspect(trace, progress)
    if plot is not None:
        from penstock.trace.figure import draw

        draw(found, shown(Path(file).name), Path(plot))
    if json_:
        print(json.dumps(found.to_json()))
        return
    for label, text in table(found):
        typer.echo(f"{label:<14}{text}")


def _of_scenario(scenario: str) -> tuple[Mapping[str, int], Mapping[str, Any]]:
    """The sizes and rates by which ``penstock simulate`` makes this scenario's own traces."""
    from penstock.sim.scenario_file import parse
    from penstock.sim.shipped import document_of

    given = parse(document_of(scenario), scenario)
    sizes = given.scenario
    return (
        {"prefill_tokens": sizes.prefill_tokens, "steps": sizes.decode_tokens, "layers": sizes.layers},
        {name: getattr(given.trace, name) for name in ("overlap", "correlation", "sinks", "recent", "seed")},
    )


def _given_or(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """The values, and another where one was not given."""
    return {name: others[name] if value is None else value for name, value in values.items()}


@contextmanager
def _progress(what: str, unit_bytes: int, as_json: bool) -> Iterator[Callable[[int, int], None]]:
    """Shows (done, in all) on stderr, in units of so many bytes."""
    display, begin_s = stderr_display(as_json), time.monotonic()

    def show(done: int, total: int) -> None:
        if time.monotonic() - begin_s < _SHOWN_AFTER_S:
            return
        display.show({"kind": "load", "what": what, "done": done * unit_bytes, "total": total * unit_bytes})

    try:
        yield show
    finally:
        display.close()


def _say_written(file: str, trace: "CodedTrace", notes: list[str], as_json: bool) -> None:
    shape = trace.shape
    if as_json:
        told = {
            "file": file,
            "prefill_tokens": shape.prefill_tokens,
            "steps": shape.steps,
            "layers": shape.layers,
            "skip": trace.realised_skip,
            "raw_bytes": trace.raw_bytes,
            "coded_bytes": trace.coded_bytes,
        }
        print(json.dumps(told))
        return
    size = f"{format_bytes(trace.coded_bytes)} ({format_bytes(trace.raw_bytes)} of bits)"
    layers, steps = figures.count(shape.layers, "layer"), figures.count(shape.steps, "step")
    typer.echo(" · ".join([file, f"{steps} × {layers} after {shape.prefill_tokens:,} tokens", *notes, size]))
