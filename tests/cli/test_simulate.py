import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from tests.sim.documents import document

from penstock.cli import main
from penstock.cli.simulate_progress import SimulationProgress
from penstock.sim.table import columns


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(document()))
    return str(path)


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels, whether or not they are: what is told of those that are not would stand in every output."""
    monkeypatch.setattr("penstock.sim.kernel_cache.is_compiled", lambda: True)


def rows(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, object]]:
    assert main(["simulate", *words, "--json"]) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["simulate", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err[:10]) == ("", 1, "penstock: ")
    return err


def test_json_is_a_list_of_rows_alone(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, small, "--placement", "prefer-hbm,alpha-layers", "--migration", "none")
    assert [row["placement"] for row in found] == ["prefer-hbm", "alpha-layers"]
    assert list(found[0]) == list(columns())


def test_nothing_is_written_without_output(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows(capsys, small, "--placement", "prefer-hbm")
    assert [path.name for path in tmp_path.iterdir()] == ["small.json"]


def test_settings_levels_and_sweeps_reach_the_rows(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--placement prefer-hbm --migration alpha --skip 0.5,0.6 --set decode_tokens=7,hbm_capacity_bytes=400"
    found = rows(capsys, small, *flags.split(), "--mode", "inclusive", "--passive", "alpha", "--sweep", "target=.7,.8")
    assert [(row["skip"], row["target"]) for row in found] == [(0.5, 0.7), (0.5, 0.8), (0.6, 0.7), (0.6, 0.8)]
    assert {(row["decode_tokens"], row["mode"], row["passive"]) for row in found} == {(7, "inclusive", "alpha")}


def test_the_table_has_bounds_first_and_the_fastest_next(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", small, "--placement", "prefer-hbm", "--migration", "none,alpha,prior"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("small · exclusive · 100 % of the weights in HBM · skip 0.5 · ")
    assert lines[1].split() == ["time", "of", "bound", "mean", "alpha", "moved"]
    assert [line[:27] for line in lines[2:5]] == [
        "lower bound (any capacity) ",
        "lower bound (any policy)   ",
        "lower bound (these weights)",
    ]
    times = [float(line.split()[2]) for line in lines[5:8]]
    assert times == sorted(times)
    assert [line.endswith("clairvoyant") for line in lines[5:]] == [" alpha " in line for line in lines[5:]]
    assert err.startswith("3 runs · trace ")


def test_several_settings_make_several_tables(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", small, "--skip", "0,0.5", "--sweep", "hbm=1000,2000", "--migration", "alpha"]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if line.startswith("small · ")]
    assert len(titles) == 4
    assert "bandwidths.hbm 2 kB/s" in titles[-1]


def test_output_keeps_tables_and_a_report(small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [small, "--placement", "prefer-hbm", "--migration", "none", "--output", str(tmp_path / "out")]
    found = rows(capsys, *words)
    assert pl.read_parquet(tmp_path / "out" / "results.parquet").to_dicts() == found
    assert (tmp_path / "out" / "report.html").exists()
    assert main(["simulate", *words]) == 0
    assert "1 run, 1 of them done before" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_steps_sum_to_the_run(small: str, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"steps.{suffix}"
    words = [small, "--placement", "alpha-layers", "--migration", "look-ahead-layer", "--steps", str(path)]
    (row,) = rows(capsys, *words)
    steps = pl.read_csv(path) if suffix == "csv" else pl.read_parquet(path)
    assert steps.select("step", "layer", "sublayer").rows() == [
        (step, layer, sublayer) for step in range(8, 20) for layer in range(2) for sublayer in range(2)
    ]
    assert steps["time_s"].sum() == pytest.approx(row["time_s"])
    for kind in ("hbm_read_bytes", "ext_written_bytes", "moved_hbm_written_bytes"):
        assert steps[kind].sum() == row[kind]
    bound = steps.filter(pl.col("binding") == "ext-read")["time_s"].sum() / steps["time_s"].sum()
    assert bound == pytest.approx(row["bound_ext_read"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere.toml"], "neither a file nor one of seed-003"),
        (["SMALL", "--set", "hbm_capacity_bytes=100"], "240 bytes of weights do not fit 100 bytes of HBM"),
        (
            ["seed-004", "--set", "omega=1"],
            "seed-004: 150 GB of weights do not fit 141 GB of HBM: set omega to at most",
        ),
        (["SMALL", "--placement", "best"], "there is no placement 'best'"),
        (["SMALL", "--set", "hbm_capacity_bytes=345G"], "GB or GiB?"),
        (["SMALL", "--skip", "30"], "skip_levels is [30]: give different numbers from 0 to 1"),
        (["SMALL", "--mode", "both"], "give 'exclusive' or 'inclusive'"),
        (["SMALL", "--mode", "exclusive", "--set", "mode=inclusive"], "use one of them"),
        (["SMALL", "--set", "mode=inclusive", "--sweep", "mode=exclusive,inclusive"], "leave one out"),
        (["SMALL", "--skip", "0", "--sweep", "skip=0,1"], "say the same thing"),
        (["SMALL", "--trace", "nowhere.trace"], "nowhere.trace"),
        (["SMALL", "--steps", "steps.txt"], "must end in .csv or .parquet"),
        (["SMALL", "--steps", "steps.csv"], "for one run, and this command names 60"),
        (["SMALL", "--bound", "lb3"], "lb2 is the only one"),
        (["SMALL", "--output", ""], "--output has no name"),
        (["SMALL", "--placement", ","], "--placement names no policy"),
        (["SMALL", "--policy", ""], "--policy names no policy"),
        (["SMALL", "--steps", "steps.csv", "--trace", "./steps.csv"], "would be written over --trace ./steps.csv"),
        (["SMALL", "--steps", "./results.csv", "--output", "."], "results.csv would be written over --steps"),
        (["SMALL", "--steps", "./results.parquet", "--output", "."], "results.parquet would be written over --steps"),
        (
            ["SMALL", "--sweep", "window=1,2", "--migration", "none", "--placement", "prefer-hbm"],
            "has the option window",
        ),
    ],
)
def test_mistakes_are_one_line(small: str, words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in complaint(capsys, *(small if word == "SMALL" else word for word in words))


def test_a_policy_that_raises_is_named(small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Mine:\n    def in_hbm(self, view):\n        raise KeyError('lost')\n")
    told = complaint(capsys, small, "--placement", f"{file}:Mine", "--migration", "none")
    assert "Mine at step 8, layer 0 raised KeyError: 'lost'" in told


def test_a_policy_of_ones_own_takes_its_side(small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Mine:\n    def in_hbm(self, view):\n        return True\nclass None_:\n    pass\n")
    (mine, prefer) = rows(capsys, small, "--placement", f"{file}:Mine,prefer-hbm", "--migration", "none")
    (alone,) = rows(capsys, small, "--policy", f"{file}:Mine", "--migration", "none")
    assert alone == mine
    assert alone["time_s"] == prefer["time_s"]
    assert "needs a method in_hbm(self, view) or moves" in complaint(capsys, small, "--policy", f"{file}:None_")


def test_a_name_that_is_no_text_is_shown_as_far_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / os.fsdecode(b"b\xffd.json")
    path.write_text(json.dumps(document(name=None)))
    (row,) = rows(capsys, str(path), "--placement", "prefer-hbm", "--migration", "none")
    assert row["scenario"] == "b?d"


def test_part_of_a_start_that_does_not_fit_is_told(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--set", "phi=1,omega=1", "--placement", "prefer-hbm", "--migration", "none"]
    assert main(["simulate", small, *words]) == 0
    assert "do not fit HBM beside" in capsys.readouterr().err


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; from penstock.cli import main; main(['simulate', '--help']);"
        "print(*{'torch', 'numpy', 'numba', 'polars'} & sys.modules.keys(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "\n"
    assert "penstock simulate seed-004-mha --skip 0.3 --output results" in done.stdout


def test_a_simulation_loads_no_torch(small: str) -> None:
    code = (
        "import sys; from penstock.cli import main; main(sys.argv[1:]);"
        "print(*{'torch', 'transformers', 'scipy.optimize', 'matplotlib'} & sys.modules.keys())"
    )
    words = ["simulate", small, "--placement", "prefer-hbm", "--migration", "none"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_suits_what_reads_it() -> None:
    now = [0.0]
    streams = (Terminal(), io.StringIO(), io.StringIO())
    for stream, as_json in zip(streams, (False, False, True), strict=True):
        now[0] = 0.0
        shown = SimulationProgress(stream, as_json, lambda: now[0])
        for done in range(0, 101, 25):
            shown.steps(done, 100)
            now[0] += 6
        shown.close()
    live, lines, records = (stream.getvalue() for stream in streams)
    assert "━━━━━━━━╌" in live
    assert live.endswith("\r\x1b[2K")
    assert lines.splitlines() == ["50 %   12.0 s left", "100 %   0 ms left"]
    assert [json.loads(line)["done"] for line in records.splitlines()] == [0, 25, 50, 75, 100]


def test_waiting_is_told_in_place_on_a_terminal_and_once_elsewhere() -> None:
    streams = (Terminal(), io.StringIO(), io.StringIO())
    for stream, as_json in zip(streams, (False, False, True), strict=True):
        shown = SimulationProgress(stream, as_json, lambda: 0.0)
        shown.wait("making traces")
        shown.wait("compiling kernels", is_long=True)
        shown.steps(1, 4)
        shown.close()
    live, lines, records = (stream.getvalue() for stream in streams)
    assert live.startswith("\r\x1b[2K making traces …\r\x1b[2K compiling kernels …\r\x1b[2K ━")
    assert live.endswith("\r\x1b[2K")
    assert lines == "compiling kernels\n"
    first, second = map(json.loads, records.splitlines())
    assert first == {"kind": "note", "text": "compiling kernels"} and second["done"] == 1


@pytest.mark.parametrize(("is_compiled", "own", "told"), [(True, False, 0), (False, False, 1), (False, True, 0)])
def test_compiling_is_told_where_kernels_are_new(
    small: str,
    tmp_path: Path,
    is_compiled: bool,
    own: bool,
    told: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("penstock.sim.kernel_cache.is_compiled", lambda: is_compiled)
    file = tmp_path / "mine.py"
    file.write_text("class Mine:\n    def in_hbm(self, view):\n        return True\n")
    placement = f"{file}:Mine" if own else "prefer-hbm"
    words = ["simulate", small, "--placement", placement, "--migration", "none", "--output", str(tmp_path / "out")]
    for times in (told, 0):  # what is finished needs no kernels
        assert main(words) == 0
        err = capsys.readouterr().err
        assert err.count("compiling kernels, once for this version: about a minute\n") == times
        assert err.count("kernels compiled in ") == times


def test_a_report_that_cannot_be_written_is_one_line(
    small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / "times.png").mkdir(parents=True)
    words = [small, "--placement", "prefer-hbm", "--migration", "none", "--output", str(out)]
    assert "cannot be written (Is a directory): make room" in complaint(capsys, *words)
    (out / "times.png").rmdir()
    assert main(["simulate", *words]) == 0
    assert "1 run, 1 of them done before" in capsys.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_what_processes_share_goes_when_a_simulation_is_ended(tmp_path: Path, how: signal.Signals) -> None:
    shared = tmp_path / "temporary"
    shared.mkdir()
    path = tmp_path / "long.json"
    path.write_text(json.dumps(document(prefill_tokens=4000, decode_tokens=20_000, layers=4, hbm_capacity_bytes=9000)))
    words = [str(path), "--migration", "none,alpha", "--skip", "0.4,0.5", "--jobs", "2"]
    command = [sys.executable, "-m", "penstock", "simulate", *words]
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(shared)}, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(shared.glob("*/*.skip*")):
        time.sleep(0.02)
    process.send_signal(how)
    assert process.wait(20) == 128 + how
    assert list(shared.iterdir()) == []
