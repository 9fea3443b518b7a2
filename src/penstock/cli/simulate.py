"""``penstock simulate``: placement and migration of KV on two memories, beside what no policy can beat."""

import json
import os
import sys
import time
from collections.abc import Container
from contextlib import closing, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import options
from penstock.cli.options import option
from penstock.cli.overwrites import refuse_nowhere, refuse_overwriting
from penstock.cli.simulate_progress import SimulationProgress
from penstock.errors import UserError
from penstock.units import format_seconds

if TYPE_CHECKING:
    from penstock.sim.results_directory import ResultsDirectory
    from penstock.sim.study import Study
    from penstock.sim.study_run import Outcome

EXAMPLES = """\
Examples:
  penstock simulate seed-004
  penstock simulate seed-004-mha --skip 0.3 --output results
  penstock simulate mine.toml --placement prefer-hbm --migration alpha:window=4,none
  penstock simulate reasoning-70b --migration alpha --sweep target=0.7,0.8,0.9 --json
  penstock simulate seed-004 --set omega=0.8,phi=0.8 --sweep mode=exclusive,inclusive
  penstock simulate mine.toml --policy mine.py:MyMigration
  penstock simulate mine.toml --placement prefer-hbm --migration none,alpha,belady --bound lb2
  penstock simulate mine.json --steps steps.csv      every step of one run
"""

SCENARIO, RUNS, OUTPUT = "Scenario", "What is run", "Output"

ScenarioName = Annotated[
    str,
    typer.Argument(
        metavar="SCENARIO",
        help="a scenario file (TOML or JSON), or seed-003, seed-003-legacy, seed-004, seed-004-mha, reasoning-70b,"
        " llama70b-b8",
        show_default=False,
    ),
]
Set = Annotated[
    list[str] | None,
    option(SCENARIO, "--set", "set a key of the scenario, such as decode_tokens=8192", metavar="KEY=VALUE"),
]
Skip = Annotated[
    str | None, option(SCENARIO, "--skip", "parts of the tokens to skip, such as 0,0.3,0.6", metavar="LEVELS")
]
TraceFile = Annotated[
    str | None, option(SCENARIO, "--trace", "a recorded or imported skip trace instead of synthetic ones", metavar="F")
]
Passive = Annotated[
    str | None, option(SCENARIO, "--passive", "what was read stays in HBM: off, all or alpha", metavar="MODE")
]
Mode = Annotated[
    str | None, option(SCENARIO, "--mode", "exclusive (one copy) or inclusive (external keeps one too)", metavar="MODE")
]
Placement = Annotated[
    list[str] | None,
    option(
        RUNS,
        "--placement",
        "placements, parted by commas, with options as in look-ahead-batch:window=8, or FILE.py:CLASS (default: all)",
        metavar="NAMES",
    ),
]
Migration = Annotated[
    list[str] | None,
    option(RUNS, "--migration", "migrations, in the same way (default: all but belady, a reference)", metavar="NAMES"),
]
Policy = Annotated[
    list[str] | None,
    option(RUNS, "--policy", "a policy of your own, on the side that its method says", metavar="FILE.py:CLASS"),
]
Sweep = Annotated[
    list[str] | None,
    option(
        RUNS,
        "--sweep",
        "take each of these values for a scenario's key or a policy's option, such as target=0.7,0.8; may be repeated",
        metavar="KEY=A,B",
    ),
]
Bound = Annotated[
    str | None, option(RUNS, "--bound", "lb2: a tighter bound by linear program, small instances", metavar="NAME")
]
Jobs = Annotated[
    int | None, option(RUNS, "--jobs", "processes at most (default: one for each core)", metavar="N", min=1)
]
Output = Annotated[
    str | None,
    option(
        OUTPUT,
        "--output",
        "write tables, figures and report.html here; an interrupted grid goes on where it stopped",
        metavar="DIR",
        short=("-o",),
    ),
]
Steps = Annotated[
    str | None,
    option(OUTPUT, "--steps", "write every step of a single run to a .csv or .parquet file", metavar="FILE"),
]
Json = Annotated[bool, option(OUTPUT, "--json", "print rows as one JSON list; progress goes to stderr as JSON lines")]


def simulate(
    scenario: ScenarioName,
    set_: Set = None,
    skip: Skip = None,
    trace: TraceFile = None,
    passive: Passive = None,
    mode: Mode = None,
    placement: Placement = None,
    migration: Migration = None,
    policy: Policy = None,
    sweep: Sweep = None,
    bound: Bound = None,
    jobs: Jobs = None,
    output: Output = None,
    steps: Steps = None,
    json_: Json = False,
) -> None:
    """Run placement and migration policies on a scenario of two memories, and say how near each comes to the bound.

    Without --placement and --migration every pair runs at each of the scenario's skip levels.
    """
    _check_names(scenario, trace, output, steps, bound)
    from penstock.cli.simulate_study import choice_of, study_asked

    chosen = choice_of(placement or [], migration or [], policy or [], skip, bound is not None)
    flags = {"trace.file": trace, "passive": passive, "mode": mode}
    study, swept_options = study_asked(scenario, set_ or [], flags, chosen, sweep or [])
    if steps is not None and study.runs != 1:
        raise UserError(
            f"--steps {steps} is for one run, and this command names {study.runs:,}: "
            "choose with --placement NAME --migration NAME --skip LEVEL"
        )
    with closing(SimulationProgress(sys.stderr, json_)) as shown:
        for warning in study.warnings:
            shown.note(f"{study.name}: {warning}")
        outcome, report_s = _results(study, output, steps, jobs or 0, shown)
        shown.close()
        if json_:
            print(json.dumps(outcome.frame.to_dicts()))
        else:
            from penstock.cli.simulate_table import answer

            for line in answer(outcome.frame, swept_options):
                print(line)
        shown.note(_account(study, outcome, report_s, output))


def _check_names(scenario: str, trace: str | None, output: str | None, steps: str | None, bound: str | None) -> None:
    """Raise UserError for what could only be written after all that is asked for has run."""
    if output == "":
        raise UserError("--output has no name: give a directory, or leave it out")
    if steps is not None:
        from penstock.sim.steps_file import SUFFIXES

        if Path(steps).suffix.lower() not in SUFFIXES:
            raise UserError(f"--steps {steps}: the name must end in {' or '.join(SUFFIXES)}")
        refuse_nowhere("--steps", steps)
        table = os.path.join(output, f"results{Path(steps).suffix.lower()}") if output else None
        refuse_overwriting({"--steps": steps, "--output": table}, {"SCENARIO": scenario, "--trace": trace})
    if bound not in (None, "lb2"):
        raise UserError(f"--bound {bound}: lb2 is the only one that is asked for; the others are always there")


def _make_ready(study: "Study", done: Container[str], shown: SimulationProgress) -> None:
    """Have kernels compiled where they are new, and say what goes on before the first step is simulated."""
    from penstock.sim.kernel_cache import is_compiled

    left = [pair for cell in study.cells for pair in cell.pairs if cell.row_id(pair) not in done]
    has_kernels = any(".py:" not in "".join(pair.texts) for pair in left)
    if has_kernels and find_spec("numba") is not None and not is_compiled():
        shown.wait("compiling kernels, once for this version: about a minute", is_long=True)
        from penstock.sim.kernel_form import compile_kernels  # imports numba

        start_s = time.perf_counter()
        compile_kernels()
        shown.note(f"kernels compiled in {format_seconds(time.perf_counter() - start_s)}")
    if left:
        shown.wait("making traces and bounds")


def _results(
    study: "Study", output: str | None, steps: str | None, jobs: int, shown: SimulationProgress
) -> "tuple[Outcome, float]":
    """What came of all runs, and the seconds that a report of them took."""
    from penstock.sim.results_directory import ResultsDirectory

    with nullcontext() if output is None else ResultsDirectory(Path(output), study) as directory:
        _make_ready(study, () if directory is None or steps is not None else directory.done, shown)
        outcome = _run(study, directory, steps, jobs, shown)
        if directory is None:
            return outcome, 0.0
        shown.wait("drawing the report")
        return outcome, _write(study, outcome, directory)


def _run(
    study: "Study", directory: "ResultsDirectory | None", steps: str | None, jobs: int, shown: SimulationProgress
) -> "Outcome":
    from penstock.sim.steps_file import StepsFile
    from penstock.sim.study_run import run_study

    try:
        with nullcontext() if steps is None else StepsFile(Path(steps)) as file:
            outcome = run_study(study, directory, jobs, shown.steps, None if file is None else file.add)
    except KeyboardInterrupt:
        if directory is None or not directory.done:
            raise
        done = sum(cell.row_id(pair) in directory.done for cell in study.cells for pair in cell.pairs)
        shown.note(
            f"penstock: stopped with {done:,} of {study.runs:,} runs finished; "
            f"they are kept in {directory.path}, and the same command goes on from there"
        )
        raise options.Stopped(options.INTERRUPTED) from None
    finally:
        shown.close()
    if file is not None:
        shown.note(f"{steps}: {file.rows:,} steps")
    return outcome


def _write(study: "Study", outcome: "Outcome", directory: "ResultsDirectory") -> float:
    """Write tables and report, and return the seconds that it took."""
    from penstock.sim.report import write_report
    from penstock.sim.table import write_table

    start_s = time.perf_counter()
    cells = [cell for cell in study.cells for _ in cell.pairs]
    best_shares = {
        row.id: float(cell.scenario.memories.best_share) for cell, (row, _) in zip(cells, outcome.rows, strict=True)
    }
    try:
        write_table(directory.path, outcome.frame)
        write_report(directory.path, outcome.frame, outcome.curves, best_shares)
    except OSError as error:
        raise UserError(
            f"--output {directory.path} cannot be written ({error.strerror or error}): make room and start again, "
            "what is finished is kept there"
        ) from error
    return time.perf_counter() - start_s


def _account(study: "Study", outcome: "Outcome", report_s: float, output: str | None) -> str:
    """What was run, and how long it took."""
    spent = outcome.seconds
    parts = [f"{study.runs:,} run" + ("s" if study.runs != 1 else "")]
    if outcome.found:
        parts[0] += f", {outcome.found:,} of them done before"
    parts += [
        f"{what} {format_seconds(seconds)}"
        for what, seconds in (("trace", spent.trace), ("simulation", spent.simulation), ("bounds", spent.bounds))
    ]
    if output is not None:
        parts += [f"report {format_seconds(report_s)}", f"open {Path(output) / 'report.html'}"]
    return " · ".join(parts)
