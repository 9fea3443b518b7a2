"""``penstock simulate``: placement and migration of KV on two memories, beside what no policy can beat."""

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import options
from penstock.cli.options import option
from penstock.cli.simulate_progress import SimulationProgress
from penstock.errors import UserError
from penstock.units import format_seconds

if TYPE_CHECKING:
    from penstock.sim.results_directory import ResultsDirectory
    from penstock.sim.study import Choice, Study
    from penstock.sim.study_run import Outcome

EXAMPLES = """\
Examples:
  penstock simulate seed-004
  penstock simulate seed-004-mha --skip 0.3 --output results
  penstock simulate mine.toml --placement prefer-hbm --migration alpha:window=4,none
  penstock simulate reasoning-70b --migration alpha --sweep target=0.7,0.8,0.9 --json
  penstock simulate seed-004 --set omega=0.8,phi=0.8 --sweep mode=exclusive,inclusive
  penstock simulate mine.toml --policy mine.py:MyMigration
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
    option(RUNS, "--migration", "migrations, in the same way (default: all)", metavar="NAMES"),
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
    if steps is not None:
        from penstock.cli.simulate_steps import check_steps

        check_steps(Path(steps))
    if bound not in (None, "lb2"):
        raise UserError(f"--bound {bound}: lb2 is the only one that is asked for; the others are always there")
    shown = SimulationProgress(sys.stderr, json_)
    settings = {"trace.file": trace, "passive": passive, "mode": mode}
    chosen = _chosen(placement or [], migration or [], policy or [], skip, bound is not None)
    study, swept_options = _study(scenario, set_, settings, chosen, sweep)
    for warning in study.warnings:
        shown.note(f"{study.name}: {warning}")
    if steps is not None:
        from penstock.cli.simulate_steps import write_steps

        lines = write_steps(study, Path(steps))
        shown.note(f"{steps}: {lines:,} steps")
    from penstock.sim.results_directory import ResultsDirectory

    with nullcontext() if output is None else ResultsDirectory(Path(output), study) as directory:
        outcome = _run(study, directory, jobs or 0, shown)
        report_s = 0.0 if directory is None else _write(outcome, directory)
    if json_:
        print(json.dumps(outcome.frame.to_dicts()))
    else:
        from penstock.cli.simulate_table import answer

        for line in answer(outcome.frame, swept_options):
            print(line)
    shown.note(_account(study, outcome, report_s, output))


def _chosen(placement: list[str], migration: list[str], own: list[str], skip: str | None, lb2: bool) -> "Choice":
    """What of the scenario is run; a person's own policy stands beside those named on its side, or alone."""
    from penstock.sim.overrides import read_value
    from penstock.sim.pairing import split_policies
    from penstock.sim.policy import MigrationPolicy, PlacementPolicy
    from penstock.sim.registry import load_policy
    from penstock.sim.study import Choice

    placing, moving = list(split_policies(placement)), list(split_policies(migration))
    for text in own:
        made = load_policy(text)
        if not isinstance(made, PlacementPolicy | MigrationPolicy):
            raise UserError(f"--policy {text} is no policy: it needs a method in_hbm(self, view) or moves(self, view)")
        placing += [text] if isinstance(made, PlacementPolicy) else []
        moving += [text] if isinstance(made, MigrationPolicy) else []
    levels = None if skip is None else [read_value(level) for level in skip.split(",")]
    return Choice(placing or None, moving or None, levels, lb2)


def _study(
    scenario: str,
    set_: list[str] | None,
    flags: dict[str, str | None],
    chosen: "Choice",
    sweep: list[str] | None,
) -> "tuple[Study, list[str]]":
    """What is to be run, and the swept keys that are options of policies."""
    from penstock.sim.overrides import read_settings, read_sweeps, with_settings
    from penstock.sim.shipped import document_of
    from penstock.sim.study import study_of

    settings = read_settings("--set", set_ or [])
    for key, value in flags.items():
        if value is not None and key in settings:
            raise UserError(f"--set {key}={settings[key]} and --{key.partition('.')[0]} {value}: use one of them")
    settings |= {key: value for key, value in flags.items() if value is not None}
    document = with_settings(document_of(scenario), settings)
    if "trace.file" in settings:
        document.pop("skip", None)
        document.pop("skip_levels", None)
    sweeps = read_sweeps("--sweep", sweep or [])
    for key in sweeps.keys() & settings.keys():
        raise UserError(f"{key} is set to {settings[key]} and swept: leave one out")
    own = [key.removeprefix("options.") for key in sweeps if key.startswith("options.") or key == "budget"]
    return study_of(document, scenario, chosen, sweeps), own


def _run(study: "Study", directory: "ResultsDirectory | None", jobs: int, shown: SimulationProgress) -> "Outcome":
    from penstock.sim.study_run import run_study

    try:
        return run_study(study, directory, jobs, shown.steps)
    except KeyboardInterrupt:
        if directory is None:
            raise
        done = sum(cell.row_id(pair) in directory.done for cell in study.cells for pair in cell.pairs)
        shown.note(
            f"penstock: stopped with {done:,} of {study.runs:,} runs finished; "
            f"they are kept in {directory.path}, and the same command goes on from there"
        )
        raise options.Stopped(options.INTERRUPTED) from None
    finally:
        shown.close()


def _write(outcome: "Outcome", directory: "ResultsDirectory") -> float:
    """Write tables and report, and return the seconds that it took."""
    from penstock.sim.report import write_report
    from penstock.sim.table import write_table

    start_s = time.perf_counter()
    write_table(directory.path, outcome.frame)
    write_report(directory.path, outcome.frame, outcome.curves)
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
