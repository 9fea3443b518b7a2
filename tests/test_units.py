from typing import Any

import pytest

from penstock.errors import UserError
from penstock.units import format_bytes, format_rate, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("4GiB", 4 * 2**30),
        ("4GB", 4 * 10**9),
        ("4096MiB", 4 * 2**30),
        ("1.5 GiB", 3 * 2**29),
        (" 64 kib ", 64 * 2**10),
        ("0.3TB", 3 * 10**11),
        ("12B", 12),
        ("12", 12),
        (12, 12),
    ],
)
def test_sizes_mean_what_they_say(text: str | int, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "GiB", "512M", "4 Gi", "-4GiB", "0", "0GiB", "1.5", "nan", "1e9", "4GiB 3", "0.1B", True, -1, 2.0]
)
def test_other_sizes_are_refused_in_one_line(text: Any) -> None:
    with pytest.raises(UserError, match=r"--cpu-memory is .*4GiB") as caught:
        parse_bytes(text, what="--cpu-memory")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (129 * 2**20, "129 MiB"),
        (int(3.21 * 2**30), "3.2 GiB"),
        (2**30 - 1, "1 GiB"),
        (99 * 2**20 + 1020 * 1024, "100 MiB"),
        (5000 * 2**40, "5000 TiB"),
    ],
)
def test_format_bytes(nbytes: int, text: str) -> None:
    assert format_bytes(nbytes) == text


def test_format_rate() -> None:
    assert format_rate(1.75e9) == "1.8 GB/s"
    assert format_rate(850e6) == "850 MB/s"
    assert format_rate(0) == "0 B/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12 ms"),
        (0.9999, "1.0 s"),
        (1.1, "1.1 s"),
        (59.97, "1 min 00 s"),
        (303, "5 min 03 s"),
        (3599.9, "1 h 00 min"),
        (6 * 3600 + 125, "6 h 02 min"),
        (52 * 3600, "2 d 04 h"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
