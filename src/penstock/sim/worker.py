"""What one process does of a study: a cell's trace and bounds made once, then its share of pairs in lockstep."""

import math
import os
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from penstock.sim.best_share import best_at_share
from penstock.sim.bounds import Bounds, bounds
from penstock.sim.initial import InitialState, initial_state
from penstock.sim.pairing import Pairing
from penstock.sim.result import BINDING, Run, Traffic
from penstock.sim.row import Curve, Row, curve_of
from penstock.sim.simulator import StepSink, simulate_many
from penstock.sim.study import Cell
from penstock.sim.trace_facts import TraceFacts, trace_facts
from penstock.sim.trace_source import one_at_a_time
from penstock.trace.skip_trace import SkipTrace

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Task:
    """Some pairs of a cell, by the cell's place in the study."""

    cell: int
    pairs: tuple[Pairing, ...]

    @property
    def effort(self) -> int:
        """About how long it takes beside other tasks of its cell: migrations that look far ahead are the slowest."""
        return sum(1 + pair.moves_ahead for pair in self.pairs)


@dataclass(frozen=True)
class Seconds:
    """Wall seconds of a process by what they went to."""

    trace: float = 0.0
    bounds: float = 0.0
    simulation: float = 0.0

    def total(self) -> float:
        """All of them."""
        return self.trace + self.bounds + self.simulation

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True)
class Finished:
    """What came of a task: its rows and curves in the order of its pairs. worker: the process that ran it."""

    task: Task
    rows: tuple[tuple[Row, Curve], ...]
    seconds: Seconds
    worker: int


@dataclass(frozen=True)
class _Known:
    """What holds of a cell under any policy."""

    start: InitialState
    facts: TraceFacts
    bounds: Bounds
    lb2_s: float | None


class Worker:
    """Runs tasks one after another and keeps the last cell's trace for the next.

    shared: a directory of the processes that run a study together. What all need of a cell is made by one of them and
    left there for the others: its trace, and what is known of it, which is not needed before the first runs are over.
    """

    def __init__(self, cells: Sequence[Cell], shared: Path | None = None) -> None:
        self._cells, self._shared = cells, shared
        self._trace: tuple[int, SkipTrace] | None = None
        self._known: tuple[int, _Known] | None = None

    def run(self, task: Task, progress: Progress, each_step: StepSink | None = None) -> Finished:
        """Run a task; progress is told token steps done, counted once for every pair; each_step: see simulate_many.

        Raises UserError for a trace that cannot be had and for a user's policy that errs.
        """
        cell = self._cells[task.cell]
        trace, seconds = self._open(task.cell)
        start_s = time.perf_counter()
        runs = simulate_many(
            cell.scenario,
            trace,
            [pair.texts for pair in task.pairs],
            each_step=each_step,
            progress=lambda steps: progress(steps * len(task.pairs)),
        )
        seconds += Seconds(simulation=time.perf_counter() - start_s)
        known, took = self._learn(task.cell, trace)
        rows = [_row(cell, pair, run, known) for pair, run in zip(task.pairs, runs, strict=True)]
        return Finished(task, tuple(rows), seconds + took, os.getpid())

    def _open(self, index: int) -> tuple[SkipTrace, Seconds]:
        """A cell's trace, and the time it took now."""
        if self._trace is None or self._trace[0] != index:
            self._trace = None  # two need not fit side by side
            start_s = time.perf_counter()
            self._trace = index, self._cells[index].trace.open(self._shared)
            return self._trace[1], Seconds(trace=time.perf_counter() - start_s)
        return self._trace[1], Seconds()

    def _learn(self, index: int, trace: SkipTrace) -> tuple[_Known, Seconds]:
        """What is known of a cell, and the time it took now."""
        if self._known is None or self._known[0] != index:
            start_s = time.perf_counter()
            self._known = index, self._shared_or_known(index, trace)
            return self._known[1], Seconds(bounds=time.perf_counter() - start_s)
        return self._known[1], Seconds()

    def _shared_or_known(self, index: int, trace: SkipTrace) -> _Known:
        if self._shared is None:
            return _known(self._cells[index], trace)
        path = self._shared / f"{index}.known"
        with one_at_a_time(path.with_suffix(".known-lock")):
            if not path.exists():
                path.write_bytes(pickle.dumps(_known(self._cells[index], trace)))
            known: _Known = pickle.loads(path.read_bytes())
            return known


def _known(cell: Cell, trace: SkipTrace) -> _Known:
    facts = trace_facts(trace)
    return _Known(initial_state(cell.scenario), facts, bounds(cell.scenario, facts.reads), _lb2(cell, trace))


def _lb2(cell: Cell, trace: SkipTrace) -> float | None:
    if not cell.lb2:
        return None
    from penstock.sim.optimum import lb2  # scipy's optimiser is slow to import

    return lb2(cell.scenario, trace)


def _row(cell: Cell, pair: Pairing, run: Run, known: _Known) -> tuple[Row, Curve]:
    scenario, start, least = cell.scenario, known.start, known.bounds
    steps, weights = scenario.decode_tokens, scenario.weights_bytes
    capacity = scenario.memories.hbm_capacity_bytes
    held = int(start.attn_bytes.sum() + start.mlp_bytes.sum())
    binding = dict(zip(BINDING, run.binding_s, strict=True))

    def part(seconds: float) -> float:
        return seconds / run.time_s if run.time_s else 1.0

    row = Row(
        id=cell.row_id(pair),
        scenario=scenario.name,
        placement=pair.labels[0],
        migration=pair.labels[1],
        clairvoyant=run.clairvoyant,
        skip=cell.trace.level,
        trace=cell.trace.name,
        mode=str(scenario.mode),
        passive=str(scenario.passive),
        budget="slack" if pair.slack else "all",
        init=str(scenario.initial.start),
        omega=held / weights if weights else 1.0,
        phi=None if scenario.initial.phi is None else float(scenario.initial.phi),
        prefill_tokens=scenario.prefill_tokens,
        decode_tokens=steps,
        hbm_capacity_bytes=capacity,
        skip_realised=known.facts.skip,
        overlap_realised=known.facts.overlap,
        time_s=run.time_s,
        ms_per_token=run.time_s / steps * 1000,
        tok_s=cell.batch * steps / run.time_s if run.time_s else None,
        mean_alpha=_number(run.mean_alpha),
        mean_alpha_bytes=_number(run.mean_alpha_bytes),
        hbm_hit_rate=run.kv_hbm_read / run.kv_read if run.kv_read else None,
        **_bytes(run.traffic),
        migrated_bytes=run.migrated_bytes,
        peak_hbm_bytes=run.peak_hbm_bytes,
        peak_occupancy=run.peak_hbm_bytes / capacity,
        bound_hbm=part(binding["hbm"]),
        bound_ext_read=part(binding["ext-read"]),
        bound_ext_write=part(binding["ext-write"]),
        bound_ext_internal=part(binding["ext-internal"]),
        bound_compute=part(binding["compute"]),
        lb0_s=least.lb0_s,
        lb1_s=least.lb1_s,
        lb1_at_weights_s=least.lb1_at_weights_s,
        lb2_s=known.lb2_s,
        oracle_share=part(least.lb1_at_weights_s),
        lb1_share=part(least.lb1_s),
        best_s=None if scenario.weight_capacity_bytes is None else best_at_share(scenario, run),
    )
    return row, curve_of(run.series, start.occupied_bytes, scenario.kv_bytes)


def _bytes(traffic: Traffic) -> dict[str, int]:
    """Traffic by the names of columns."""
    return {f"{field.name}_bytes": getattr(traffic, field.name) for field in fields(traffic)}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
