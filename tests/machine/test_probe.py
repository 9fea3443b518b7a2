import pytest

from penstock.machine.probe import cpu_computes_bfloat16


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
