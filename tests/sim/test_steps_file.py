"""Steps in a file: in both forms the same, whole or not there."""

import resource
import signal
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.sim.documents import document

from penstock.errors import UserError
from penstock.sim.ledger import StepBatch
from penstock.sim.result import BINDING, Traffic
from penstock.sim.results_directory import ResultsDirectory
from penstock.sim.simulator import simulate_many
from penstock.sim.steps_file import StepsFile
from penstock.sim.study import Choice, Study, study_of
from penstock.sim.study_run import run_study


def study(*migrations: str) -> Study:
    return study_of(document(), "small", Choice(["prefer-hbm"], migrations))


def batch(first: int, steps: int) -> StepBatch:
    """Steps of two layers with times that have many digits."""
    draw = np.random.default_rng(first)
    shape = steps, 2, 2
    return StepBatch(
        first, draw.integers(0, 2**53, (*shape, 8)), draw.random(shape) / 3, draw.integers(0, 5, shape).astype(np.uint8)
    )


def written(path: Path, *batches: StepBatch) -> pl.DataFrame:
    with StepsFile(path) as file:
        for each in batches:
            file.add(each)
    return pl.read_csv(path) if path.suffix == ".csv" else pl.read_parquet(path, glob=False)


def test_batches_become_a_line_for_each_step(tmp_path: Path) -> None:
    one, other = batch(8, 3), batch(11, 2)
    text, table = written(tmp_path / "a.csv", one, other), written(tmp_path / "a[1]*.parquet", one, other)
    assert table.equals(text)
    assert table.columns[3:5] == ["hbm_read_bytes", "ext_read_bytes"] and table.width == 3 + len(vars(Traffic())) + 2
    assert table["step"].to_list() == [step for step in range(8, 13) for _ in range(4)]
    assert table["time_s"].to_list() == [*one.time_s.ravel(), *other.time_s.ravel()]
    assert table["moved_ext_written_bytes"][:12].to_list() == one.bytes_by_kind[..., 7].ravel().tolist()
    assert table["binding"][12:].to_list() == [BINDING[i] for i in other.binding.ravel()]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a[1]*.parquet"]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_run_that_ends_early_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyboardInterrupt), StepsFile(tmp_path / name) as file:
        file.add(batch(0, 3))
        assert not (tmp_path / name).exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match=f"--steps .*{name} cannot be written .*: use another name"):
            written(tmp_path / name, batch(0, 60), batch(60, 60))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_one_replay_gives_the_steps_and_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replays: list[int] = []

    def counted(*given, **named):  # type: ignore[no-untyped-def]
        replays.append(1)
        return simulate_many(*given, **named)

    monkeypatch.setattr("penstock.sim.worker.simulate_many", counted)
    batches: list[StepBatch] = []
    alone = run_study(study("alpha"), each_step=batches.append, jobs=2)
    assert len(replays) == 1
    (row,) = alone.frame.iter_rows(named=True)
    assert sum(float(each.time_s.sum()) for each in batches) == pytest.approx(row["time_s"])
    for times in (1, 2):  # what is in the directory is replayed for its steps
        with ResultsDirectory(tmp_path, study("alpha")) as directory:
            again = run_study(study("alpha"), directory, each_step=batches.append)
        assert (again.found, len(replays)) == (times - 1, 1 + times)
        assert again.frame.equals(alone.frame)
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1


def test_steps_of_several_runs_are_not_told_apart() -> None:
    with pytest.raises(ValueError, match="each_step for 2 runs"):
        run_study(study("none", "alpha"), each_step=lambda batch: None)
    cell = study("none", "alpha").cells[0]
    pairs = [pair.texts for pair in cell.pairs]
    with pytest.raises(ValueError, match="each_step for 2 pairs"):
        simulate_many(cell.scenario, cell.trace.open(), pairs, each_step=lambda batch: None)
