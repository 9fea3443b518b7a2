"""The directory of a study: every finished run at once on disk, so that a study goes on where it stopped.

``study.json`` says whose results they are; ``results.jsonl`` grows by a line for every run, and is what a later start
reads; results.csv and results.parquet are made from it.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from penstock.errors import UserError
from penstock.part_file import PartFile
from penstock.sim.row import Curve, Row
from penstock.sim.study import Study

_HEAD, _LINES = "study.json", "results.jsonl"
_DIGITS = 7  # of curves, which are for pictures


class ResultsDirectory:
    """Rows and curves by id, in memory and on disk; open it in a ``with``, which leaves nothing where no run finished.

    Raises UserError for a directory that cannot be written, that holds another scenario's results or files of these
    names that are no results, or that another process writes to.
    """

    def __init__(self, path: Path, study: Study) -> None:
        self.path = path
        self.done: dict[str, tuple[Row, Curve]] = {}
        self._made = [directory for directory in (path, *path.parents) if not directory.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._check_head(study)
            self._lines = os.open(path / _LINES, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                self._lock()
                self._read()
            except (OSError, UserError):
                os.close(self._lines)
                raise
        except OSError as error:
            raise UserError(f"--output {path} cannot be written ({error.strerror}): use another directory") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.done:
            self._take_back()
        os.close(self._lines)

    def add(self, rows: Iterable[tuple[Row, Curve]]) -> None:
        """Keep finished runs, each in a line that is written whole."""
        for row, curve in rows:
            if row.id in self.done:
                continue
            data = json.dumps({"row": asdict(row), "curve": _written(curve)}).encode() + b"\n"
            try:
                while data:
                    data = data[os.write(self._lines, data) :]
            except OSError as error:
                raise UserError(
                    f"{self.path / _LINES} cannot be written ({error.strerror}): make room and start again, it goes on"
                ) from error
            self.done[row.id] = (row, curve)

    def _take_back(self) -> None:
        """Remove what was made here."""
        with contextlib.suppress(OSError):  # what others put there stays
            for name in (_LINES, _HEAD):
                (self.path / name).unlink()
            for directory in self._made:
                directory.rmdir()

    def _check_head(self, study: Study) -> None:
        """Write whose results these are, or check it."""
        head = self.path / _HEAD
        mine = {"scenario": study.name, "identity": study.identity, "columns": [field.name for field in fields(Row)]}
        if not head.exists():
            if (self.path / _LINES).exists():
                raise UserError(f"{self.path} has a {_LINES} without its {_HEAD}: use another --output")
            with PartFile(head) as whole:
                whole.file.write(json.dumps(mine, indent=1).encode() + b"\n")
            return
        try:
            found: Any = json.loads(head.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict) or not {"scenario", "identity", "columns"} <= found.keys():
            raise UserError(f"{head} is no head of results: use another --output, or delete that directory")
        if found["identity"] != mine["identity"]:
            same = found["scenario"] == mine["scenario"]
            whose = f"{study.name} with other settings" if same else f"the scenario {found['scenario']}"
            raise UserError(f"{self.path} holds results of {whose}: use another --output, or delete that directory")
        if found["columns"] != mine["columns"]:
            raise UserError(f"{self.path} was written by another version: use another --output, or delete it")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another penstock simulate writes to {self.path}: wait for it, or use another --output"
            ) from None
        if not os.fstat(self._lines).st_nlink:
            raise UserError(f"another penstock simulate has just left {self.path} with nothing finished: start again")

    def _read(self) -> None:
        """Take over the lines that are there; what a kill tore, the last one, is cut off."""
        with open(self.path / _LINES, "rb") as file:
            data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._lines, whole)
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                record = json.loads(line)
                row, curve = Row(**record["row"]), _read_curve(record["curve"])
            except (ValueError, TypeError, KeyError, OverflowError):
                raise UserError(
                    f"{self.path / _LINES}, line {number}, is no result: delete that line, and its run is made again"
                ) from None
            self.done[row.id] = (row, curve)


def _written(curve: Curve) -> dict[str, list[float | int | None]]:
    return {
        "step": curve.step.tolist(),
        "ms_per_token": [_short(value) for value in curve.ms_per_token],
        "alpha": [None if np.isnan(value) else _short(value) for value in curve.alpha],
        "hbm_bytes": curve.hbm_bytes.tolist(),
    }


def _read_curve(record: Mapping[str, Any]) -> Curve:
    return Curve(
        np.array(record["step"], np.int64),
        np.array(record["ms_per_token"], np.float64),
        np.array([np.nan if value is None else value for value in record["alpha"]], np.float64),
        np.array(record["hbm_bytes"], np.int64),
    )


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
