import io
import json
import math
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.profiling.profiles import HERE, profile

import penstock.profiling.measure
from penstock.cli import main
from penstock.cli.profile import lines
from penstock.profiling.disk import mount_of
from penstock.profiling.measure import Form, Progress
from penstock.profiling.profile import Profile
from penstock.profiling.profile_file import load_profile, profile_path, save_profile


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was measured instead of a real measurement, by the name of its form, or ``disks``."""
    done: list[str] = []

    def measure(checkpoint: object, offload_dir: Path, form: Form, progress: Progress) -> Profile:
        done.append(form.name)
        progress("products", 15.0, 60.0)
        progress("", 60.0, 60.0)
        return profile(form.name, mount=mount_of(tmp_path))

    def disks(stored: Profile, *arguments: object) -> Profile:
        done.append("disks")
        return replace(stored, disks=profile(mount=mount_of(tmp_path)).disks)

    monkeypatch.setattr(penstock.profiling.measure, "measure_profile", measure)
    monkeypatch.setattr(penstock.profiling.measure, "with_disks", disks)
    return done


def test_what_an_older_profile_did_not_measure_is_not_told() -> None:
    stored = profile()
    cpu = replace(stored.machine.processors["cpu"], expert_s=0.0, dequantise_per_s=math.inf)
    told = "\n".join(lines(replace(stored, machine=replace(stored.machine, processors={"cpu": cpu}))))
    assert "0.2 ns a logit" in told
    assert "expert" not in told
    assert "unpacked" not in told


def test_table(measured: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert measured == ["long"]
    assert lines[0].startswith("this host       ")
    assert "long form, in 48.0 s" in lines[1]
    assert lines[3:9] == [
        "cpu products    tokens of a call    1  256",
        "GFLOP/s         float32<bfloat16  7.1  240",
        "                float32             5",
        "cpu attention   query tokens        1  256",
        "GFLOP/s                            16  110",
        "                keys and values read at 9.6 GB/s; between products 8.2 GB/s",
    ]
    assert (
        lines[9] == "                besides: 310 µs a call and page, 1.2 ms a sweep, 40 µs a drawn row, 0.2 ns a logit"
    )
    assert (
        lines[10] == "                220 µs an expert that a call touches; 1.3 G elements of 4 bits unpacked a second"
    )
    assert lines[11] == "                new memory written at 750 MB/s"
    assert "disk→cpu        1.4 GB/s    210 µs latency, give or take 12% a page" in lines
    assert lines[-1].endswith("compute loses 8% of its speed while the disk reads, the disk 13%")
    assert load_profile() == profile(mount=mount_of(tmp_path))


def test_a_stored_profile_is_used_again(measured: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile"]) == main(["profile"]) == main(["profile", "--short"]) == 0
    assert measured == ["long"]
    assert "--force measures again" in capsys.readouterr().err
    assert main(["profile", "--force"]) == 0
    assert measured == ["long", "long"]


def test_a_short_one_gives_way_to_a_long_one(measured: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--short"]) == main(["profile"]) == 0
    assert measured == ["short", "long"]
    assert "measuring again: that was the short form" in capsys.readouterr().err


def test_another_machine_s_is_measured_again(measured: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    save_profile(profile(host=replace(HERE, name="elsewhere")))
    assert main(["profile"]) == 0
    assert measured == ["long"]
    assert "measuring again: measured on elsewhere" in capsys.readouterr().err


def test_a_disk_that_was_not_measured_is_added(measured: list[str], tmp_path: Path) -> None:
    save_profile(profile(mount="/elsewhere"))
    assert main(["profile", "--offload-dir", str(tmp_path)]) == 0
    assert measured == ["disks"]


def test_show(measured: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--show"]) == 2
    assert "nothing is measured yet" in capsys.readouterr().err
    save_profile(profile())
    assert main(["profile", "--show"]) == 0
    out, err = capsys.readouterr()
    assert (out.splitlines()[0].split()[:2], err, measured) == (["this", "host"], "", [])


def test_show_says_that_what_it_shows_is_not_used(capsys: pytest.CaptureFixture[str]) -> None:
    save_profile(profile(host=replace(HERE, name="elsewhere")))
    assert main(["profile", "--show", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["host"]["name"] == "elsewhere"
    assert json.loads(err)["text"].startswith("plans and runs do not use this: measured on elsewhere")
    older = profile()
    save_profile(replace(older, versions={**older.versions, "torch": "1.0"}))
    assert main(["profile", "--show"]) == 0
    told = capsys.readouterr().err
    assert told.startswith("plans and runs do not use this: measured with torch 1.0, now ") and told.count("\n") == 1


def test_show_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--show", "--force"]) == 2
    assert "leave --force and --short out" in capsys.readouterr().err


def test_a_spoilt_profile_is_one_line(measured: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    save_profile(profile())
    profile_path().write_text(profile_path().read_text().replace("1400000000", "-14"))
    assert main(["profile"]) == 2
    err = capsys.readouterr().err
    assert "machine.links.disk→cpu.bytes_per_s is -14" in err and err.count("\n") == 1
    assert main(["profile", "--force"]) == 0
    assert measured == ["long"]


def test_progress_is_told_on_stderr(measured: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile"]) == 0
    assert capsys.readouterr().err == "products (15/60 s)\n"
    assert main(["profile", "--force", "--json"]) == main(["profile", "--json"]) == 0
    load, note = map(json.loads, capsys.readouterr().err.splitlines())
    assert load == {"kind": "load", "what": "products", "done": 15.0, "total": 60.0, "unit": "s"}
    assert note["kind"] == "note" and note["text"].startswith("measured ")


def test_a_terminal_is_told_what_is_measured_and_since_when(
    measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", stderr := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(penstock.profiling.measure, "measure_profile", lambda *how: _slowly(*how, stderr))
    assert main(["profile"]) == 0
    assert re.search(r"\d s of about 60\b.* products", stderr.getvalue())


def _slowly(checkpoint: object, offload_dir: Path, form: Form, progress: Progress, drawn: io.StringIO) -> Profile:
    """Waits until the bar has been drawn."""
    progress("products", 15.0, 60.0)
    for _ in range(100):
        if "products" in drawn.getvalue():
            break
        time.sleep(0.05)
    return profile(form.name)


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--help"]) == 0
    assert "penstock profile --force --offload-dir scratch" in capsys.readouterr().out


def test_importing_libraries_is_part_of_the_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    forms: list[Form] = []
    now = iter(range(0, 1000, 7))  # a clock that is asked every seven seconds

    def measure(checkpoint: object, offload_dir: Path, form: Form, progress: Progress) -> Profile:
        forms.append(form)
        return profile(form.name)

    monkeypatch.setattr(penstock.profiling.measure, "measure_profile", measure)
    monkeypatch.setattr("penstock.cli.profile.time.perf_counter", lambda: next(now))
    assert main(["profile", "--force"]) == main(["profile", "--force", "--short"]) == 0
    assert [(form.name, form.budget_s) for form in forms] == [("long", 60 - 7 - 3), ("short", 15)]
