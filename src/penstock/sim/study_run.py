"""A study run from its start, or from where it stopped, to its table."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from penstock.errors import UserError
from penstock.sim.overrides import whole_key, with_settings
from penstock.sim.pairing import Pairing
from penstock.sim.pool import run_tasks
from penstock.sim.results_directory import ResultsDirectory
from penstock.sim.row import Curve, Row
from penstock.sim.scenario import Scenario
from penstock.sim.shipped import document_of
from penstock.sim.simulator import StepSink
from penstock.sim.study import Cell, Choice, Study, study_of, study_of_scenario
from penstock.sim.table import Value, table, write_table
from penstock.sim.worker import Seconds, Task

Progress = Callable[[int, int], None]

# Below so many words of skip sets, over all pairs, more processes take longer to start than they save.
_WORDS_FOR_PROCESSES = 1 << 27
# Of a task with several migrations: every task reads the trace anew, but a stopped study loses those under way, and
# with a few tasks each, processes end at about the same time.
_FEWEST_PAIRS, _MOST_PAIRS = 12, 30
_TASKS_PER_PROCESS = 3


@dataclass(frozen=True)
class Outcome:
    """What came of a study: rows in its order with their swept values, and curves by the rows' ids.

    seconds: of the slowest process; found: runs that had been finished before.
    """

    rows: tuple[tuple[Row, Mapping[str, Value]], ...]
    curves: Mapping[str, Curve]
    seconds: Seconds
    found: int

    @property
    def frame(self) -> pl.DataFrame:
        """The rows as a table."""
        return table(self.rows)


def run_study(
    study: Study,
    directory: ResultsDirectory | None = None,
    jobs: int = 0,
    progress: Progress | None = None,
    each_step: StepSink | None = None,
) -> Outcome:
    """Run what of a study is not in the directory yet, and add it there as it is finished.

    jobs: processes at most; 0: one for each core, if there is enough to do. progress: token steps done, in all, counted
    once for every pair. each_step: receives every step of a study of one run, which is made for it even where its
    result is in the directory. Raises UserError for what only shows in running: a trace that cannot be made or read, a
    user's policy that errs.
    """
    if each_step is not None and study.runs != 1:
        raise ValueError(f"each_step for {study.runs} runs: their steps could not be told apart")
    done = dict(directory.done) if directory is not None else {}
    ids = [[cell.row_id(pair) for pair in cell.pairs] for cell in study.cells]
    found = sum(row_id in done for of_cell in ids for row_id in of_cell)
    tasks = list(_tasks(study, ids, done if each_step is None else {}, jobs or _cores()))
    total = sum(len(task.pairs) * study.cells[task.cell].scenario.decode_tokens for task in tasks)
    steps_done = 0

    def tell(steps: int) -> None:
        nonlocal steps_done
        steps_done += steps
        if progress is not None:
            progress(steps_done, total)

    by_worker: dict[int, Seconds] = {}
    for finished in run_tasks(study.cells, tasks, jobs or _jobs(study, tasks), tell, each_step):
        if directory is not None:
            directory.add(finished.rows)
        done |= {row.id: (row, curve) for row, curve in finished.rows}
        by_worker[finished.worker] = by_worker.get(finished.worker, Seconds()) + finished.seconds
    rows = [
        (_as_asked(done[row_id][0], cell, pair), {**cell.swept, **dict(pair.swept)})
        for cell, of_cell in zip(study.cells, ids, strict=True)
        for pair, row_id in zip(cell.pairs, of_cell, strict=True)
    ]
    curves = {row.id: done[row.id][1] for row, _ in rows}
    return Outcome(tuple(rows), curves, max(by_worker.values(), key=Seconds.total, default=Seconds()), found)


def _as_asked(row: Row, cell: Cell, pair: Pairing) -> Row:
    """A row by the names that it has in this study: an option may have been swept, or a file been called otherwise."""
    return replace(row, placement=pair.labels[0], migration=pair.labels[1], trace=cell.trace.name)


def grid(
    scenario: str | Path | Mapping[str, Any] | Scenario,
    *,
    placements: Sequence[str] | None = None,
    migrations: Sequence[str] | None = None,
    skip: Sequence[float] | None = None,
    settings: Mapping[str, object] | None = None,
    sweep: Mapping[str, Sequence[object]] | None = None,
    lb2: bool = False,
    output: str | Path | None = None,
    jobs: int = 1,
) -> pl.DataFrame:
    """Run every placement with every migration at every skip level, and return a table with a row for each.

    scenario: a shipped name, a file, the keys of one (docs/simulate.md), or a Scenario. settings: keys to set; sweep:
    keys to the values that they are to take. output: a directory that keeps results as they are finished, and
    results.csv and results.parquet; a grid that was interrupted goes on from it. jobs: processes, 0 for one for each
    core; where it is not 1, the calling script needs the ``if __name__ == "__main__"`` that multiprocessing asks for.
    Raises UserError for what cannot be run.
    """
    study = _study(scenario, Choice(placements, migrations, skip, lb2), settings or {}, sweep or {})
    with nullcontext() if output is None else ResultsDirectory(Path(output), study) as directory:
        frame = run_study(study, directory, jobs).frame
        if directory is not None:
            write_table(directory.path, frame)
    return frame


def _study(
    scenario: str | Path | Mapping[str, Any] | Scenario,
    choice: Choice,
    settings: Mapping[str, object],
    sweep: Mapping[str, Sequence[object]],
) -> Study:
    if isinstance(scenario, Scenario):
        if settings or sweep:
            key = next(iter({**settings, **sweep}))
            raise UserError(f"{key} is set or swept in a scenario's keys: give a name, a file or a mapping of keys")
        return study_of_scenario(scenario, choice)
    given = dict(scenario) if isinstance(scenario, Mapping) else document_of(str(scenario))
    source = "scenario" if isinstance(scenario, Mapping) else str(scenario)
    document = with_settings(given, {whole_key(key, "settings"): value for key, value in settings.items()})
    sweeps = {"skip" if key in ("skip", "skip_levels") else whole_key(key, "sweep"): sweep[key] for key in sweep}
    return study_of(document, source, choice, sweeps)


def _tasks(study: Study, ids: Sequence[Sequence[str]], done: Mapping[str, object], jobs: int) -> Iterator[Task]:
    """What is left to do, each combination once; placements of a migration stay together, for they may be one run.

    jobs: processes among which it would be shared.
    """
    seen = set(done)
    runs = len(set().union(*ids) - seen)
    most = min(max(runs // (jobs * _TASKS_PER_PROCESS), _FEWEST_PAIRS), _MOST_PAIRS)
    for index, cell in enumerate(study.cells):
        left: dict[str, list[Pairing]] = {}
        for pair, row_id in zip(cell.pairs, ids[index], strict=True):
            if row_id not in seen:
                seen.add(row_id)
                left.setdefault(pair.texts[1], []).append(pair)
        parts = [of[first : first + most] for of in left.values() for first in range(0, len(of), most)]
        portion: list[Pairing] = []
        for part in parts:
            if len(portion) + len(part) > most:
                yield Task(index, tuple(portion))
                portion = []
            portion += part
        if portion:
            yield Task(index, tuple(portion))


def _jobs(study: Study, tasks: Sequence[Task]) -> int:
    words = 0
    for task in tasks:
        shape = study.cells[task.cell].trace.shape
        words += shape.steps * shape.layers * shape.words * len(task.pairs)
    return _cores() if words >= _WORDS_FOR_PROCESSES else 1


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
