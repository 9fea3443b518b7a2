"""The directories that runs spill to: their own, removed at the end, and swept when their process is dead."""

import os
import socket
import subprocess
import sys

import pytest

from penstock.errors import UserError
from penstock.memory.offload import make_offload, offload_root, remove_offload


def test_a_run_has_a_directory_of_its_own_that_goes_away(tmp_path):
    root = offload_root(tmp_path / "spill")
    first, second = make_offload(root), make_offload(root)
    assert first != second and first.is_dir()
    assert offload_root(tmp_path / "spill") == root and first.is_dir(), "its process lives"
    remove_offload(first)
    assert list(root.iterdir()) == [second]


def test_only_dead_processes_are_swept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    (tmp_path / f"run-{host}-{dead.pid}-abc").mkdir()
    stay = [f"run-{host}-{os.getpid()}-abc", f"run-another-{dead.pid}-abc", "something-else"]
    for name in stay:
        (tmp_path / name).mkdir()
    offload_root(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(stay)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        offload_root(tmp_path / "file" / "below")


def test_a_root_that_is_gone_by_then_is_told(tmp_path):
    root = offload_root(tmp_path / "spill")
    root.rmdir()
    with pytest.raises(UserError, match=r"spill takes no directory \(No such file or directory\): give another one"):
        make_offload(root)
