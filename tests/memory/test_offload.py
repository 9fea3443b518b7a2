"""The directories that runs spill to: their own, removed at the end, and swept when their process is dead."""

import os
import subprocess
import sys

import pytest

from penstock.errors import UserError
from penstock.memory.offload import make_offload, offload_root, remove_offload


def test_a_run_has_a_directory_of_its_own_that_goes_away(tmp_path):
    root = offload_root(tmp_path / "spill")
    first, second = make_offload(root), make_offload(root)
    assert first != second and first.is_dir()
    remove_offload(first)
    assert list(root.iterdir()) == [second]


def test_only_dead_processes_are_swept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f"run-{dead.pid}-abc").mkdir()
    (tmp_path / f"run-{os.getpid()}-abc").mkdir()
    (tmp_path / "something-else").mkdir()
    offload_root(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"run-{os.getpid()}-abc", "something-else"]


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        offload_root(tmp_path / "file" / "below")
