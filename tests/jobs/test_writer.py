import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from penstock.errors import UserError
from penstock.jobs.errors import JobStopped
from penstock.jobs.writer import Writer


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"{}\n")
    with Writer(path) as writer:
        assert writer.write([{"a": 1}, {"b": "é"}]) == 9 + 12
        assert writer.write([]) == 0
        assert path.read_text() == '{}\n{"a": 1}\n{"b": "é"}\n'
        writer.write([{"c": 3}])
    assert path.read_text().endswith('\n{"c": 3}\n')
    writer.close()
    with pytest.raises(ValueError, match="is closed"):
        writer.write([{}])


def test_a_file_that_cannot_be_opened_is_the_persons_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        Writer(tmp_path / "missing" / "out.jsonl")


def test_everything_is_on_disk_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.jsonl"
    synced, found = threading.Event(), []
    real = os.fsync

    def fsync(file: int) -> None:
        real(file)
        found.append(path.stat().st_size)
        synced.set()

    monkeypatch.setattr("os.fsync", fsync)
    with Writer(path) as writer:
        for number in range(1, 3):
            began, size = time.monotonic(), sum(writer.write([{"a": 1}]) for _ in range(3))
            assert synced.wait(5)
            assert time.monotonic() - began < 1
            assert found[-1] == size * number
            synced.clear()
        assert len(found) == 2
        writer.write([{"b": 2}])
    assert found[-1] == path.stat().st_size


def test_a_failing_disk_stops_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    writer = Writer(tmp_path / "out.jsonl")
    writer.write([{}])
    with pytest.raises(JobStopped, match="Input/output error"):
        writer.close()


def test_an_output_that_was_removed_stops_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers would go on into a file that nobody can open."""
    monkeypatch.setattr("penstock.jobs.writer.SYNC_EVERY_S", 0.01)
    writer = Writer(tmp_path / "out.jsonl")
    writer.write([{}])
    writer.path.rename(tmp_path / "moved.jsonl")
    writer.write([{}])
    (tmp_path / "moved.jsonl").unlink()
    writer.write([{}])
    with pytest.raises(JobStopped, match=r"out\.jsonl was removed while it was written to"):
        writer.close()


def test_what_stopped_the_job_is_heard_before_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ZeroDivisionError), Writer(tmp_path / "out.jsonl") as writer:
        writer.write([{}])
        _ = 1 / 0


FULL = """
import resource, sys
from penstock.jobs.errors import JobStopped
from penstock.jobs.writer import Writer
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
writer = Writer(sys.argv[1])
written = 0
try:
    while True:
        writer.write([{"number": written, "text": "x" * 700}, {"number": written + 1, "text": "y" * 700}])
        written += 2
except JobStopped as stopped:
    print(written)
    print(stopped)
try:
    writer.write([{"number": written, "text": ""}])
except JobStopped:
    print("again")
writer.close()
"""


def test_a_full_disk_leaves_whole_lines_and_says_what_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    ran = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=60)
    assert ran.stderr == ""
    count, message, *rest = ran.stdout.splitlines()
    assert rest == []  # a short line still found room
    numbers = [json.loads(line)["number"] for line in path.read_text().splitlines()]
    assert numbers == list(range(int(count) + 1))
    assert message.startswith("out.jsonl is as large as a file may be here, 8.5 KiB: 1.4 KiB more are needed.")
    assert "start the same command again: what is done is kept" in message


@pytest.mark.parametrize(
    ("number", "words"),
    [(28, ["no room left for out.jsonl: 3 B more", "are free in"]), (122, ["quota"]), (5, ["disk of"])],
)
def test_each_way_to_fail_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: list[str]
) -> None:
    path = tmp_path / "out.jsonl"
    writer = Writer(path)
    writer.write([{"a": 1}])
    real = os.write

    def write(file: int, data: bytes) -> int:
        """Half of it, then the error."""
        if len(data) < 3:
            raise OSError(number, os.strerror(number))
        return real(file, bytes(data)[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr("os.write", write)
        with pytest.raises(JobStopped) as caught:
            writer.write([{}])
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b'{"a": 1}\n'
    writer.close()


def test_an_interruption_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path / "out.jsonl")
    writer.write([{"a": 1}])
    real = os.write

    def write(file: int, data: bytes) -> int:
        if len(data) < 5:
            raise KeyboardInterrupt
        return real(file, bytes(data)[:4])

    with monkeypatch.context() as patch:
        patch.setattr("os.write", write)
        with pytest.raises(KeyboardInterrupt):
            writer.write([{"b": 2}])
    assert (tmp_path / "out.jsonl").read_bytes() == b'{"a": 1}\n'
    writer.write([{"c": 3}])
    writer.close()
    assert (tmp_path / "out.jsonl").read_bytes() == b'{"a": 1}\n{"c": 3}\n'
