"""Kernels compile for CUDA, which needs no device: to machine code that rounds as torch does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cuda import places

from penstock.cuda.elements import RECORDS


@pytest.mark.skipif(places.DEVICE.type == "cuda", reason="the other tests compile them for this device")
def test_kernels_compile(tmp_path):
    """In a process whose Triton compiles, for the oldest devices that it supports and for two newer kinds."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_kernels.py")],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = [line.split() for line in done.stdout.splitlines()]
    assert {record for record, *_ in told} == set(RECORDS)
    for record, kernel, dtype, variants, *instructions in told:
        # the first of a kind compiles for all sizes: a trial leaves nothing to compile while a run is timed
        assert variants == "1", (record, kernel, dtype)
        # numbers that are compared in the interpreter would not show it
        assert not [name for name in instructions if "ftz" in name or "tf32" in name], (record, kernel, dtype)
        on_matrices = any("mma" in name for name in instructions)
        assert on_matrices == (kernel == "_multiply" and dtype != "torch.float32"), (record, kernel, dtype)
