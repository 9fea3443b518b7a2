"""What the processes of a study share, and in which order they take their tasks."""

from pathlib import Path

import pytest
from tests.sim.documents import document

from penstock.sim.study import Choice, Study, study_of
from penstock.sim.worker import Task, Worker


def study(*migrations: str) -> Study:
    return study_of(document(skip_levels=[0.5]), "x", Choice(["prefer-hbm"], migrations))


def test_what_looks_further_ahead_takes_longer() -> None:
    (cell,) = study("none", "look-ahead", "look-ahead-batch:window=4", "look-ahead-batch").cells
    efforts = [Task(0, (pair,)).effort for pair in cell.pairs]
    assert efforts == sorted(set(efforts))


def test_what_is_known_of_a_cell_is_found_once_for_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = study("none", "alpha").cells
    one, other = (Task(0, (pair,)) for pair in cells[0].pairs)
    alone = [Worker(cells).run(task, lambda steps: None).rows[0][0] for task in (one, other)]
    first = Worker(cells, tmp_path).run(one, lambda steps: None)
    for name in ("bounds", "trace_facts"):
        monkeypatch.setattr(f"penstock.sim.worker.{name}", None)
    second = Worker(cells, tmp_path).run(other, lambda steps: None)
    assert [first.rows[0][0], second.rows[0][0]] == alone
