"""Kernels compile for CUDA, which needs no device: to machine code that rounds as torch does."""

import os
import subprocess
import sys
from pathlib import Path

from tests.cuda import places

from penstock.cuda.elements import RECORDS


def test_kernels_compile(tmp_path):
    """In a process whose Triton compiles, for the oldest devices that it supports and for two newer kinds."""
    assert places.triton
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_kernels.py")],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {line.split()[0] for line in done.stdout.splitlines()} == set(RECORDS)
    for line in done.stdout.splitlines():
        *_, instructions = line.split(":")
        # subnormal numbers flushed to zero, and products of fewer bits, would go unseen by what compares numbers alone
        assert "ftz" not in instructions and "tf32" not in instructions, line
        assert ("mma" in instructions) == ("_multiply" in line and "fp32" not in line), line
