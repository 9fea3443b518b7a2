import polars as pl
import pytest

from penstock.sim.readable import heading, percent, plain, seconds, share, size


@pytest.mark.parametrize(
    ("time_s", "told"),
    [(12_345.6, "12,346 s"), (60.94, "60.94 s"), (1, "1.000 s"), (0.0842, "84.20 ms"), (2.5e-6, "2.500 µs")],
)
def test_times_can_be_compared(time_s: float, told: str) -> None:
    assert seconds(time_s) == told


def test_parts_and_sizes() -> None:
    assert [percent(part) for part in (0.984, 1.0, None)] == ["98.4 %", "100 %", "–"]
    assert [share(part) for part in (0.7901, None)] == ["0.790", "–"]
    assert [size(nbytes) for nbytes in (120_000_000_000, 0)] == ["120 GB", "–"]


def test_values_have_the_units_of_their_keys() -> None:
    assert plain(4_915_000_000_000, "bandwidths.hbm") == "4.9 TB/s"
    assert plain(141_000_000_000, "hbm_capacity_bytes") == "141 GB"
    told = [plain(value) for value in (16_384, 0.30, 0.8452, True, "exclusive", None)]
    assert told == ["16,384", "0.3", "0.8452", "true", "exclusive", "–"]


def test_a_heading_says_what_rows_have_in_common() -> None:
    rows = pl.DataFrame(
        {
            "scenario": ["made", "made"],
            "mode": ["exclusive", "inclusive"],
            "omega": [0.8, 0.8],
            "skip": [None, None],
            "skip_realised": [0.51, 0.51],
            "trace": ["a.skip", "a.skip"],
            "decode_tokens": [8192, 8192],
        }
    )
    assert heading(rows, ["mode", "decode_tokens"]) == (
        "made · 80 % of the weights in HBM · 51.0 % skipped · a.skip · decode_tokens 8,192"
    )
    assert heading(rows[:1]).startswith("made · exclusive · ")
