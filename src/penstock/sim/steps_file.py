"""Every step of a run in a file, a line for each (n, l, s), written as the steps are made."""

from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import polars as pl

from penstock.errors import UserError
from penstock.part_file import PartFile
from penstock.sim.ledger import StepBatch
from penstock.sim.result import BINDING, Traffic

SUFFIXES = (".csv", ".parquet")


class StepsFile:
    """A .csv or .parquet file that grows by batches of steps; in a ``with`` it has its name at the end.

    An exception leaves nothing behind. One batch of rows is held at a time: parquet, which polars writes in one go, is
    streamed at the end from lines of text beside it. UserError where the disk does not take it.
    """

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self._path = path
        self._is_text = path.suffix.lower() == ".csv"
        self._schema = pl.Schema()
        try:
            self._text = PartFile(path if self._is_text else path.with_name(f"{path.name}.rows"))
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as unwritten:
            raise self._unwritable(unwritten) from unwritten
        finally:
            self._text.discard()

    def add(self, batch: StepBatch) -> None:
        """Write the next steps."""
        frame = _frame(batch)
        try:
            self._text.file.write(frame.write_csv(include_header=not self.rows).encode())
        except OSError as error:
            raise self._unwritable(error) from error
        self.rows += frame.height
        self._schema = frame.schema

    def _finish(self) -> None:
        if self._is_text:
            self._text.finish()
            return
        self._text.file.flush()
        with PartFile(self._path) as whole:
            pl.scan_csv(self._text.part, schema=self._schema, glob=False).sink_parquet(whole.part)

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"--steps {self._path} cannot be written ({error.strerror or error}): use another name")


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
