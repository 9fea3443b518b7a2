"""Whether kernels are compiled already, as far as their files tell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.sim import kernel_cache


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where numba would put the index of what it compiled."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    path = kernel_cache._home() / "sim_0123" / "kernel_step.advance-17.py311.nbi"
    path.parent.mkdir(parents=True)
    return path


def test_kernels_are_new_until_they_are_kept(index: Path) -> None:
    assert not kernel_cache.is_compiled()
    index.with_name("kernel_other.part-1.py311.nbi").touch()
    assert not kernel_cache.is_compiled()
    index.touch()
    assert kernel_cache.is_compiled()


def test_what_is_older_than_its_source_is_compiled_again(index: Path) -> None:
    index.touch()
    os.utime(index, (0, 0))
    assert not kernel_cache.is_compiled()


def test_asking_does_not_load_numba() -> None:
    code = "import sys; from penstock.sim.kernel_cache import is_compiled; is_compiled(); print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
