"""What processes share lies where nothing of it stays, however they end."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from penstock.errors import UserError
from penstock.sim.shared_directory import shared_directory

HOLD = """
import sys
from penstock.sim.shared_directory import shared_directory
with shared_directory() as path:
    (path / "trace").write_bytes(bytes(9))
    print(path, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def holder() -> "subprocess.Popen[str]":
    """Another process that has made a directory and keeps it."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and "penstock-simulate-" in process.stdout.readline()
    return process


def test_it_goes_at_the_end_and_with_an_error(temporary: Path) -> None:
    with shared_directory() as path:
        assert path.parent == temporary and path.is_dir()
    assert list(temporary.iterdir()) == []
    with pytest.raises(KeyError), shared_directory() as path:
        (path / "trace").touch()
        raise KeyError
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(temporary: Path) -> None:
    process = holder()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = temporary.iterdir()
    assert (left / "trace").exists()
    with shared_directory() as path:
        assert list(temporary.iterdir()) == [path]
    assert list(temporary.iterdir()) == []


def test_what_a_living_process_holds_stays(temporary: Path) -> None:
    process = holder()
    (theirs,) = temporary.iterdir()
    with shared_directory() as path:
        assert sorted(temporary.iterdir()) == sorted((theirs, path))
    assert (theirs / "trace").exists()
    process.communicate("")
    assert list(temporary.iterdir()) == []


def test_links_of_that_name_are_left_alone(temporary: Path) -> None:
    kept = temporary / "kept"
    kept.mkdir()
    (temporary / "penstock-simulate-link").symlink_to(kept)
    with shared_directory():
        pass
    assert kept.is_dir()


def test_a_place_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(UserError, match=r"No such file or directory\): set TMPDIR"), shared_directory():
        pass
