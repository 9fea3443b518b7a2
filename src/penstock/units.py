"""Bytes, rates and seconds as people write and read them. Numbers inside the program are plain bytes and seconds."""

import re
from fractions import Fraction

from penstock.errors import UserError

_BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_DECIMAL = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_FACTORS = {unit.lower(): factor for unit, factor in ({"B": 1} | _BINARY | _DECIMAL).items()}
_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)")


def parse_bytes(size: str | int, what: str = "size") -> int:
    """The number of bytes that a person wrote: ``4GiB`` (2^30), ``4GB`` (10^9), ``1.5 GiB``; a bare number is bytes.

    ``what`` names the setting in the UserError that anything else, zero and negative sizes raise.
    """
    given = size.strip() if isinstance(size, str) else size
    allowed = "give a positive size such as 4GiB (2^30 bytes), 4GB (10^9), 4096MiB, or bytes as a whole number"
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise UserError(f"{what} is {size!r}: {allowed}")
    match = _SIZE.fullmatch(str(given))
    factor = _FACTORS.get(match[2].lower() or "b") if match else None
    if match is None or factor is None:
        raise UserError(f"{what} is {size!r}: {allowed}")
    nbytes = int(Fraction(match[1]) * factor)
    if nbytes <= 0 or (not match[2] and "." in match[1]):
        raise UserError(f"{what} is {size!r}: {allowed}")
    return nbytes


def _scaled(amount: float, units: dict[str, int], smallest: str) -> str:
    """The amount in the largest unit that keeps it at 1 or more, in about three digits and without a trailing .0."""
    name, factor = smallest, 1
    for unit, size in units.items():
        if round(amount / factor) >= size // factor:
            name, factor = unit, size
    value = amount / factor
    digits = f"{value:.0f}" if value >= 99.95 or factor == 1 else f"{value:.1f}".removesuffix(".0")
    return f"{digits} {name}"


def format_bytes(nbytes: int) -> str:
    """A size in binary units: ``3.2 GiB``, ``129 MiB``, ``12 B``."""
    return _scaled(nbytes, _BINARY, "B")


def format_rate(bytes_per_s: float) -> str:
    """A bandwidth in decimal units, as disks and links are sold: ``1.8 GB/s``, ``850 MB/s``."""
    return _scaled(bytes_per_s, _DECIMAL, "B") + "/s"


def format_seconds(seconds: float) -> str:
    """A duration in its two largest units: ``12 ms``, ``1.1 s``, ``5 min 03 s``, ``6 h 02 min``, ``2 d 04 h``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02} h"
