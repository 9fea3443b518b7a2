"""A study's numbers as tables and figures write them: the same in a terminal and in a report."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from penstock.units import format_rate

NOTHING = "–"
_TOLD = ("scenario", "mode", "omega", "skip", "trace")  # in headings by themselves


def seconds(time_s: float) -> str:
    """A simulated time in four digits or more: they are there to be compared."""
    if time_s >= 1000:
        return f"{time_s:,.0f} s"
    if time_s >= 1:
        return f"{time_s:#.4g} s"
    return f"{time_s * 1000:#.4g} ms" if time_s >= 0.001 else f"{time_s * 1e6:#.4g} µs"


def percent(part: float | None) -> str:
    """A part of a whole to a tenth of a percent."""
    return NOTHING if part is None else f"{100 * part:.1f} %".replace("100.0 %", "100 %")


def share(part: float | None) -> str:
    """A part as alpha is written."""
    return NOTHING if part is None else f"{part:.3f}"


def size(nbytes: float) -> str:
    """Bytes in the units that memories and scenarios are told in: ``120 GB``."""
    return format_rate(nbytes).removesuffix("/s") if nbytes else NOTHING


def plain(value: object, key: str = "") -> str:
    """A setting's value; key: what it is set for, which says its unit."""
    if value is None:
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if key.startswith("bandwidths."):
        return format_rate(value)
    if key.endswith("_bytes"):
        return size(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def heading(rows: pl.DataFrame, settings: Sequence[str] = ()) -> str:
    """What rows are of, as far as they agree; settings: others that are named too."""
    first: dict[str, Any] = rows.row(0, named=True)

    def agrees(name: str) -> bool:
        return first[name] is not None and rows[name].n_unique() == 1

    told = [first["scenario"]] if agrees("scenario") else []
    if agrees("mode"):
        told.append(first["mode"])
    if agrees("omega"):
        told.append(f"{100 * first['omega']:.0f} % of the weights in HBM")
    if agrees("skip"):
        told.append(f"skip {first['skip']:g}")
    if agrees("skip_realised") and first["skip_realised"] and first["skip_realised"] != first["skip"]:
        told.append(f"{percent(first['skip_realised'])} skipped")
    if agrees("trace") and first["trace"] not in ("synthetic", "inline"):
        told.append(first["trace"])
    told += [f"{name} {plain(first[name], name)}" for name in settings if name not in _TOLD and agrees(name)]
    return " · ".join(told)
