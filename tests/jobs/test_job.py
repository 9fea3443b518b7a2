import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.errors import UserError
from penstock.jobs.errors import JobStopped
from penstock.jobs.job import JobFile, check_same_job, conflicts, job_path, status

SETTINGS = {"model": "demo", "dtype": "float32", "seed": 5, "chat": True, "stop": ["a"]}

HOLDER = """
import sys
from penstock.jobs.job import JobFile
job = JobFile.open(sys.argv[1], {"model": "demo"} if sys.argv[2] == "begun" else None)
job.save_progress({"answered": 3, "eta_s": 7.5}, every_s=0)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def begin(out: Path) -> None:
    """A job with an answer."""
    JobFile.open(out, SETTINGS).close()
    out.write_text("an answer\n")


def test_settings_are_stored_once_and_read_again(out: Path) -> None:
    with JobFile.open(out, SETTINGS) as job:
        assert job.stored == SETTINGS
    out.write_text("an answer\n")
    with JobFile.open(out, {"model": "other"}) as job:
        assert job.stored == SETTINGS
    with JobFile.open(out) as job:
        assert job.stored == SETTINGS
    assert out.read_text() == "an answer\n"


def test_a_job_without_an_answer_begins_anew(out: Path) -> None:
    begin(out)
    for empty in (lambda: out.write_text(""), out.unlink):
        empty()
        with JobFile.open(out) as job:
            assert job.stored is None
            assert status(out)["settings"] == SETTINGS
    with JobFile.open(out, {"model": "new"}) as job:
        assert job.stored == status(out)["settings"] == {"model": "new"}


def test_a_job_that_never_began_leaves_nothing(out: Path) -> None:
    with JobFile.open(out) as job:
        assert job.stored is None
        assert job.path.exists()
    assert not job.path.exists()


def test_settings_may_come_after_the_lock(out: Path) -> None:
    with JobFile.open(out) as job:
        job.store(SETTINGS)
    assert status(out)["settings"] == SETTINGS


def test_overwriting_waits_until_the_new_job_begins(out: Path) -> None:
    begin(out)
    with JobFile.open(out, overwrite=True) as job:
        assert job.stored is None
    assert (out.read_text(), status(out)["settings"]) == ("an answer\n", SETTINGS)
    with JobFile.open(out, {"model": "new"}, overwrite=True) as job:
        job.save_progress({"answered": 1})
    assert (out.read_text(), status(out)["settings"]) == ("", {"model": "new"})


@pytest.mark.parametrize("state", ["begun", "starting"])
def test_a_second_process_is_refused_until_the_first_ends(out: Path, state: str) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out), state], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        before = job_path(out).read_bytes()
        with pytest.raises(
            UserError, match=rf"answers\.jsonl is being written by another penstock \(pid {holder.pid}\)"
        ):
            JobFile.open(out, SETTINGS)
        with pytest.raises(UserError, match="another penstock"):
            JobFile.open(out, SETTINGS, overwrite=True)
        assert job_path(out).read_bytes() == before
        found = status(out)
        assert (found["pid"], found["answered"], found["eta_s"]) == (holder.pid, 3, 7.5)
    finally:
        holder.kill()
        holder.communicate()
    assert (status(out)["pid"], status(out)["eta_s"]) == (None, None)
    out.write_text("an answer\n")
    with JobFile.open(out, SETTINGS) as job:
        assert job.stored == ({"model": "demo"} if state == "begun" else SETTINGS)
        assert status(out)["pid"] == os.getpid()


def test_the_lock_survives_progress_of_any_length(out: Path) -> None:
    with JobFile.open(out, SETTINGS) as job:
        for size in (5, 3000, 0, 1024):
            assert job.save_progress({"input": "x" * size, "lines": size}, every_s=0)
            assert (status(out)["input"], status(out)["lines"]) == ("x" * size, size)
            with pytest.raises(UserError, match=f"pid {os.getpid()}"):
                JobFile.open(out)
    assert status(out)["settings"] == SETTINGS


def test_progress_takes_no_more_disk_as_it_goes_on(out: Path) -> None:
    with JobFile.open(out, SETTINGS) as job:
        began = job.path.stat().st_size
        for answered in (1, 10**9):
            job.save_progress({"answered": answered, "input": "in.jsonl", "eta_s": 1 / 3}, every_s=0)
            assert job.path.stat().st_size == began


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_no_lock(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed = []

    def lock(file: int) -> bool:
        if not removed:
            job_path(out).unlink()
            removed.append(file)
        return True

    monkeypatch.setattr("penstock.jobs.job._lock", lock)
    with JobFile.open(out, SETTINGS):
        assert removed
        assert job_path(out).exists()


def test_progress_is_written_now_and_then_and_at_the_end(out: Path) -> None:
    with JobFile.open(out, SETTINGS) as job:
        job.save_progress({"answered": 1, "tok_s": 2.5}, every_s=0)
        assert not job.save_progress({"answered": 2}, every_s=60)
        assert status(out)["answered"] == 1
    found = status(out)
    assert (found["answered"], found["tok_s"]) == (2, 2.5)
    out.write_text("an answer\n")
    assert found["started"] <= found["updated"]
    with JobFile.open(out):
        assert (status(out)["answered"], status(out)["tok_s"]) == (2, None)


def test_a_torn_job_file_keeps_what_is_whole(out: Path) -> None:
    begin(out)
    whole = job_path(out).read_bytes()
    head = whole.index(b"\n")
    for size in range(0, len(whole), 7):
        job_path(out).write_bytes(whole[:size])
        with JobFile.open(out) as job:
            assert job.stored == (SETTINGS if size >= head else None)


def test_a_file_of_the_same_name_is_not_written_over(out: Path) -> None:
    for text in ("my own notes\n", '{"version": 99, "settings": {}}\n'):
        job_path(out).write_text(text)
        with pytest.raises(UserError, match="use another -o"):
            JobFile.open(out, SETTINGS)
        assert job_path(out).read_text() == text


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        JobFile.open(tmp_path / "missing" / "out.jsonl")
    with pytest.raises(UserError, match=r"no job of .*none\.jsonl is known"):
        status(tmp_path / "none.jsonl")

    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(JobStopped, match="make room"):
        JobFile.open(tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_start_that_is_refused_leaves_the_file_as_it_was(out: Path, overwrite: bool) -> None:
    begin(out)
    with JobFile.open(out) as job:
        job.save_progress({"answered": 1, "tok_s": 2.5}, every_s=0)
    whole = job_path(out).read_bytes()
    for found in (whole, whole[:20], bytes(300), whole[:-200], whole.replace(b"\n", b"")):
        job_path(out).write_bytes(found)
        with JobFile.open(out, overwrite=overwrite):
            assert status(out)["pid"] == os.getpid()
            with pytest.raises(UserError, match=f"pid {os.getpid()}"):
                JobFile.open(out)
        assert job_path(out).read_bytes() == found


def test_what_a_start_that_was_killed_left_goes(out: Path) -> None:
    for found in (b"", b'\n{"pid": 1}\n'):
        job_path(out).write_bytes(found)
        JobFile.open(out).close()
        assert not job_path(out).exists()


def test_contradictions_are_named() -> None:
    asked = {"dtype": "bfloat16", "seed": None, "chat": False, "model": "demo", "stop": ["b"], "top_p": 0.5}
    assert conflicts(SETTINGS, asked) == [
        "dtype float32, now bfloat16",
        "chat true, now false",
        'stop ["a"], now ["b"]',
        "top_p not set, now 0.5",
    ]
    assert conflicts(json.loads(json.dumps(SETTINGS)), SETTINGS) == []


def test_another_jobs_answers_are_not_gone_on_with(out: Path) -> None:
    check_same_job(out, 431, SETTINGS, {"seed": 5})
    check_same_job(out, 0, None, {"seed": 5})
    with pytest.raises(UserError) as caught:
        check_same_job(out, 431, SETTINGS, {"dtype": "bfloat16"})
    assert str(caught.value) == (
        "answers.jsonl holds 431 lines of another run (dtype float32, now bfloat16). Use another -o, or --overwrite."
    )
    with pytest.raises(UserError, match=r"answers\.jsonl\.job does not say what made them"):
        check_same_job(out, 431, None, {})
