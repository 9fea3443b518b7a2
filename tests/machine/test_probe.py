import os

import pytest
import torch

from penstock.errors import UserError
from penstock.machine.probe import cpu_computes_bfloat16, probe_disk, probe_gemm
from penstock.model.pages import Extent


def test_gemm_rate_is_plausible_and_float32_grows_with_rows():
    one, many = (probe_gemm(torch.float32, rows, seconds=0.2, width=512) for rows in (1, 128))
    assert 1e7 < one < many < 1e14


def test_disk_rate_of_a_file_and_of_extents(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(3 << 20))
    assert 1e6 < probe_disk(path, seconds=0.05) < 1e12
    assert 1e6 < probe_disk([Extent(str(path), 5000, 1 << 20, 0)], seconds=0.05) < 1e12


def test_disk_of_a_truncated_file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="truncated"):
        probe_disk([Extent(str(path), 0, 4096, 0)], seconds=0.01)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: Skylake\nflags\t\t: fpu avx512f avx512_vnni", False),
        ("flags\t\t: fpu avx512f avx512_bf16", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("Features\t: fp asimd", False),
        ("model name\t: bf16 in the name only\nflags\t\t: fpu", False),
    ],
)
def test_bfloat16_arithmetic_is_read_from_the_cpu_flags(tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_computes_bfloat16(tmp_path / "cpuinfo") is expected


def test_bfloat16_where_there_is_no_cpuinfo(tmp_path):
    assert cpu_computes_bfloat16(tmp_path / "none") in (True, False)
