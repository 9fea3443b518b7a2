"""Numbers as a person reads them, beyond the units that ``penstock.units`` writes."""

from penstock.units import format_bytes, format_rate, parse_bytes


def size_of(used_bytes: int, budget_bytes: int | None) -> str:
    """Bytes used of a budget, both in the budget's unit: ``10.7/12 GiB``."""
    if not budget_bytes:
        return format_bytes(used_bytes)
    budget, unit = format_bytes(budget_bytes).split()
    return f"{_short(used_bytes / parse_bytes(f'1 {unit}'))}/{budget} {unit}"


def seconds_of(done_s: float, total_s: float) -> str:
    """Seconds done of those that it takes: ``12/60 s``."""
    return f"{done_s:.0f}/{total_s:.0f} s"


def bandwidth(nbytes: int, seconds: float) -> str:
    """Bytes moved in some time, as a rate: ``1.4 GB/s``."""
    return format_rate(nbytes / seconds if seconds > 0 else 0.0)


def speed(tokens_per_s: float) -> str:
    """Tokens per second in about three digits: ``13.6``, ``0.042``, ``1,250``."""
    return _short(tokens_per_s) if tokens_per_s >= 1 else f"{tokens_per_s:.2g}"


def share(fraction: float) -> str:
    """A fraction in percent: ``71 %``; something that rounds to nothing is ``<1 %``."""
    return "<1 %" if 0 < fraction < 0.005 else f"{100 * fraction:.0f} %"


def count(number: int, noun: str) -> str:
    """A number with its noun, in the plural where it needs one: ``1 prompt``, ``2,000 prompts``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def link(key: str) -> str:
    """A link's or lane's name as printed: ``disk→cpu`` of ``disk_to_cpu``."""
    return key.replace("_to_", "→")


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}".removesuffix(".0")
