"""Every step of a simulated run in a file: bytes by kind, time and what bound it."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl

from penstock.cli.overwrites import refuse_nowhere
from penstock.errors import UserError
from penstock.sim.result import BINDING, Traffic
from penstock.sim.simulator import StepBatch, simulate
from penstock.sim.study import Study

SUFFIXES = (".csv", ".parquet")


def check_steps(path: Path) -> None:
    """The steps are written last: a wrong name must not cost a run."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--steps {path}: the name must end in .csv or .parquet")
    refuse_nowhere("--steps", str(path))


def write_steps(study: Study, path: Path) -> int:
    """Run the only pair of a study and write a line for each (n, l, s); return how many."""
    cell = study.cells[0]
    batches: list[pl.DataFrame] = []
    simulate(
        cell.scenario, cell.trace.open(), *cell.pairs[0].texts, each_step=lambda batch: batches.append(_frame(batch))
    )
    frame = pl.concat(batches)
    try:
        frame.write_csv(path) if path.suffix.lower() == ".csv" else frame.write_parquet(path)
    except OSError as error:
        raise UserError(f"--steps {path} cannot be written ({error.strerror}): use another name") from error
    return frame.height


def _frame(batch: StepBatch) -> pl.DataFrame:
    steps, layers, sublayers = batch.time_s.shape
    step, layer, sublayer = (index.ravel() for index in np.indices((steps, layers, sublayers), dtype=np.int64))
    kinds = batch.bytes_by_kind.reshape(-1, batch.bytes_by_kind.shape[-1])
    return pl.DataFrame(
        {"step": step + batch.first, "layer": layer, "sublayer": sublayer}
        | {f"{field.name}_bytes": kinds[:, index] for index, field in enumerate(fields(Traffic))}
        | {
            "time_s": batch.time_s.ravel(),
            "binding": pl.Series(np.array(BINDING)[batch.binding.ravel()]),
        }
    )
