import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.sim.documents import document

from penstock.errors import UserError
from penstock.sim import Scenario, grid, simulate
from penstock.sim.results_directory import ResultsDirectory
from penstock.sim.scenario_file import parse
from penstock.sim.study import Choice, Study, study_of
from penstock.sim.study_run import run_study
from penstock.trace.skip_trace import TraceShape
from penstock.trace.synth import synth

MOVES = ["none", "alpha", "look-ahead-layer"]


def study(**changes: Any) -> Study:
    return study_of(document(**changes), "small", Choice(["prefer-hbm"], MOVES))


def directory_of(path: Path) -> ResultsDirectory:
    return ResultsDirectory(path, study())


def test_a_row_is_what_the_simulator_counted() -> None:
    frame = grid(document(), placements=["alpha-layers"], migrations=["look-ahead-layer"])
    row = frame.row(0, named=True)
    scenario = parse(document(), "x").scenario
    trace = synth(TraceShape(8, 12, 2), 0.5, overlap=0.6, sinks=1, recent=2)
    run = simulate(scenario, trace, "alpha-layers", "look-ahead-layer")
    assert frame.height == 1
    assert (row["time_s"], row["migrated_bytes"]) == (run.time_s, run.migrated_bytes)
    assert row["ms_per_token"] == pytest.approx(run.time_s / 12 * 1000)
    assert row["tok_s"] == pytest.approx(12 / run.time_s)
    assert (row["mean_alpha"], row["mean_alpha_bytes"]) == (run.mean_alpha, run.mean_alpha_bytes)
    assert row["hbm_read_bytes"] == run.traffic.hbm_read
    assert row["moved_ext_written_bytes"] == run.traffic.moved_ext_written
    assert row["hbm_hit_rate"] == run.kv_hbm_read / run.kv_read
    assert row["skip_realised"] == pytest.approx(trace.realised_skip)
    bound = [row[name] for name in row if name.startswith("bound_")]
    assert sum(bound) == pytest.approx(1)
    assert row["clairvoyant"]
    assert row["lb0_s"] <= row["lb1_s"] <= row["lb1_at_weights_s"] <= row["time_s"]
    assert row["oracle_share"] == row["lb1_at_weights_s"] / row["time_s"]


def test_the_grid_is_all_pairs_at_all_levels() -> None:
    frame = grid(document(skip_levels=[0, 0.5]))
    assert frame.height == frame.unique(["placement", "migration", "skip"]).height == 2 * 60
    assert frame["peak_occupancy"].max() <= 1
    assert (frame["oracle_share"] <= 1 + 1e-9).all()


def test_a_scenario_made_in_python_runs_too() -> None:
    scenario = parse(document(), "x").scenario
    assert isinstance(scenario, Scenario)
    frame = grid(scenario, placements=["prefer-hbm"], migrations=["none"], skip=[0, 1])
    assert frame["skip"].to_list() == [0, 1]
    assert frame["hbm_hit_rate"].to_list()[1] is None


def test_sweeps_multiply_and_name_their_columns() -> None:
    frame = grid(
        document(),
        placements=["prefer-hbm"],
        migrations=["none", "alpha"],
        sweep={"target": (0.5, 0.9), "mode": ("exclusive", "inclusive"), "hbm": (1000, 2000)},
    )
    assert frame.height == 2 * 2 * (1 + 2)
    assert frame.filter(pl.col("migration") == "none")["target"].null_count() == 4
    assert set(frame["bandwidths.hbm"]) == {1000, 2000}
    assert set(frame["mode"]) == {"exclusive", "inclusive"}
    assert "skip_levels" not in frame.columns


def test_levels_are_swept_too() -> None:
    frame = grid(document(), placements=["prefer-hbm"], migrations=["none"], sweep={"skip": (0, 0.6)})
    assert frame["skip"].to_list() == [0, 0.6]


def test_the_linear_program_lies_between() -> None:
    frame = grid(document(decode_tokens=4), placements=["prefer-hbm"], migrations=["alpha"], lb2=True)
    row = frame.row(0, named=True)
    assert row["lb1_at_weights_s"] <= row["lb2_s"] * (1 + 1e-9)
    assert row["lb2_s"] <= row["time_s"] * (1 + 1e-9)


def test_inline_sets_run_as_they_stand() -> None:
    sets = [[[0], []], [[], [1, 2]], [[3], [3]]]
    keys = document(prefill_tokens=3, decode_tokens=3, skip=sets, skip_levels=None, trace=None)
    row = grid(keys, placements=["prefer-hbm"], migrations=["none"]).row(0, named=True)
    assert (row["trace"], row["skip"]) == ("inline", None)
    assert row["skip_realised"] == 5 / (2 * (3 + 4 + 5))


def test_a_trace_file_runs_and_must_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    synth(TraceShape(8, 12, 2), 0.5, path=path)
    keys = document(trace={"file": str(path)}, skip_levels=None)
    assert grid(keys, placements=["prefer-hbm"], migrations=["none"])["trace"].to_list() == ["a.trace"]
    with pytest.raises(UserError, match=r"layers is 2 in the trace and 3 in the scenario; use another trace, or --set"):
        grid(keys | {"layers": 3, "hbm_capacity_bytes": 900})
    with pytest.raises(UserError, match="has its own skip level"):
        grid(keys, skip=[0.3])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hbm_capacity_bytes": 100}, "small: .*do not fit"),
        ({"trace": {"overlap": 0.1}, "skip_levels": [0.3]}, "small: an overlap of 0.1"),
    ],
)
def test_what_cannot_run_is_refused_beforehand(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        study(**changes)


def test_processes_find_what_one_finds() -> None:
    one = run_study(study(skip_levels=[0, 0.5]), jobs=1)
    two = run_study(study(skip_levels=[0, 0.5]), jobs=2)
    assert one.frame.equals(two.frame)


def test_a_finished_grid_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = grid(document(), placements=["prefer-hbm"], migrations=MOVES, output=tmp_path)
    monkeypatch.setattr("penstock.sim.study_run.run_tasks", lambda cells, tasks, *more: iter(tasks and [1 / 0]))
    assert grid(document(), placements=["prefer-hbm"], migrations=MOVES, output=tmp_path).equals(first)
    assert pl.read_parquet(tmp_path / "results.parquet").equals(first)


def test_a_torn_line_is_made_again(tmp_path: Path) -> None:
    whole = grid(document(), placements=["prefer-hbm"], migrations=MOVES, output=tmp_path)
    lines = tmp_path / "results.jsonl"
    data = lines.read_bytes()
    lines.write_bytes(data[: -len(data.splitlines()[-1]) // 2])
    again = grid(document(), placements=["prefer-hbm"], migrations=MOVES, output=tmp_path)
    assert again.equals(whole)
    assert [json.loads(line)["row"]["id"] for line in lines.read_bytes().splitlines()] == whole["id"].to_list()


def test_more_of_the_same_scenario_joins_what_is_there(tmp_path: Path) -> None:
    grid(document(), placements=["prefer-hbm"], migrations=["none"], output=tmp_path)
    with directory_of(tmp_path) as directory:
        grown = run_study(study(), directory)
    assert (grown.found, len(grown.rows)) == (1, 3)


def test_a_changed_policy_of_ones_own_is_another_run(tmp_path: Path) -> None:
    file = tmp_path / "my.python" / "mine.py"
    file.parent.mkdir()
    ids = []
    for body in ("return True", "return False"):
        file.write_text(f"class Mine:\n    def in_hbm(self, view):\n        {body}\n")
        frame = grid(document(), placements=[f"{file}:Mine"], migrations=["none"], output=tmp_path / "out")
        ids += frame["id"].to_list()
    assert len(set(ids)) == 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "other"}, "holds results of the scenario small: use another --output"),
        ({"kv_bytes": 11}, "holds results of small with other settings"),
    ],
)
def test_another_scenarios_directory_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    grid(document(), placements=["prefer-hbm"], migrations=["none"], output=tmp_path)
    with pytest.raises(UserError, match=told):
        grid(document(**changes), output=tmp_path)


def test_strange_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(UserError, match="no head of results"):
        directory_of(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        directory_of(tmp_path / "file")


def test_a_directory_has_one_writer(tmp_path: Path) -> None:
    with directory_of(tmp_path), pytest.raises(UserError, match="another penstock simulate writes"):
        directory_of(tmp_path)


def test_a_study_that_finishes_no_run_leaves_nothing(tmp_path: Path) -> None:
    file, other = tmp_path / "mine.py", tmp_path / "other"
    file.write_text("class Mine:\n    def in_hbm(self, view):\n        raise KeyError('lost')\n")
    other.mkdir()
    (other / "theirs").touch()
    for output in (tmp_path / "a" / "b", other):
        with pytest.raises(UserError, match="raised KeyError"):
            grid(document(), placements=[f"{file}:Mine"], migrations=["none"], output=output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.py", "other"]
    assert [path.name for path in other.iterdir()] == ["theirs"]


def test_a_killed_grid_goes_on_where_it_stopped(tmp_path: Path) -> None:
    keys = document(prefill_tokens=20, decode_tokens=40, layers=4, hbm_capacity_bytes=1000, skip_levels=[0.4, 0.5])
    code = f"""
import json, sys
from penstock.sim import grid
if __name__ == "__main__":
    grid(json.loads({json.dumps(json.dumps(keys))}), output={str(tmp_path / "out")!r}, jobs=2)
"""
    (tmp_path / "run.py").write_text(code)
    lines = tmp_path / "out" / "results.jsonl"
    process = subprocess.Popen([sys.executable, str(tmp_path / "run.py")])
    while process.poll() is None and not (lines.exists() and lines.stat().st_size):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = len(lines.read_bytes().splitlines())
    assert kept > 0
    again = grid(keys, output=tmp_path / "out")
    assert again.height == again["id"].n_unique() == 120
    found = [json.loads(line)["row"]["id"] for line in lines.read_bytes().splitlines()]
    assert sorted(found) == sorted(again["id"])


def test_belady_runs_where_it_is_named() -> None:
    frame = grid(document(), placements=["prefer-hbm", "alpha-layers"], migrations=["none", "belady"])
    reference = frame.filter(pl.col("migration") == "belady").row(0, named=True)
    assert frame["migration"].to_list() == ["none", "belady", "none"] and reference["placement"] == "prefer-hbm"
    assert reference["clairvoyant"] and reference["oracle_share"] <= 1 + 1e-9
    assert "belady" not in grid(document(decode_tokens=1))["migration"].to_list()


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (Choice(["prefer-hbm"], ["belady"]), "small: belady is for small and medium instances: 401,577,768 reads"),
        (Choice(["prefer-hbm"], ["none"], lb2=True), "small: LB2 is for small instances"),
    ],
)
def test_bounds_of_small_instances_are_refused_before_a_sweep_comes_to_a_large_one(choice: Choice, told: str) -> None:
    with pytest.raises(UserError, match=told):
        study_of(document(), "small", choice, {"decode_tokens": (4, 14_166)})


def test_rows_are_named_as_they_are_asked_for(tmp_path: Path) -> None:
    """The same run is kept once, whether an option was swept or written out."""
    swept = grid(
        document(), placements=["prefer-hbm"], migrations=["alpha"], sweep={"target": (0.5, 0.9)}, output=tmp_path
    )
    assert swept["migration"].to_list() == ["alpha", "alpha"]
    written = grid(document(), placements=["prefer-hbm"], migrations=["alpha:target=0.9"], output=tmp_path)
    assert written["migration"].to_list() == ["alpha:target=0.9"]
    assert written["id"][0] == swept["id"][1]


def test_levels_hold_for_every_swept_setting() -> None:
    keys = document(hbm_capacity_bytes=None)
    frame = grid(keys, placements=["prefer-hbm"], migrations=["none"], skip=[0.6], sweep={"hbm_capacity_bytes": (345,)})
    assert frame["skip"].to_list() == [0.6]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"sweep": {"mode": ()}}, "mode is swept over no values"),
        ({"skip": [30]}, r"skip_levels is \[30\]: give different numbers from 0 to 1"),
    ],
)
def test_lists_that_cannot_be_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        grid(document(), **given)
    if "skip" in given:
        with pytest.raises(UserError, match=r"small: skip is \[30\]: give different numbers"):
            grid(parse(document(), "x").scenario, **given)
