"""The answer of a simulation as a person reads it: bounds first, then the pairs of policies, the fastest first."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from penstock.cli import figures
from penstock.sim.table import swept_columns, varied
from penstock.units import format_rate

_MOST_OF_SEVERAL = 12  # rows of a table where there are several
_NOTHING = "–"
_HEAD = ("time", "of bound", "mean alpha", "moved")


def answer(frame: pl.DataFrame, options: Sequence[str]) -> Iterator[str]:
    """The lines of all tables. options: swept keys that are policies' own, which tell rows apart, not tables."""
    settings = [name for name in varied(frame) if name not in options]
    groups = list(frame.group_by(settings, maintain_order=True)) if settings else [((), frame)]
    shown_options = [name for name in (*swept_columns(frame), "budget") if name in options]
    for number, (values, rows) in enumerate(groups):
        if number:
            yield ""
        yield _title(rows.row(0, named=True), dict(zip(settings, values, strict=True)))
        yield from _table(rows.sort("time_s", maintain_order=True), shown_options, len(groups) > 1)


def _title(row: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    told = [row["scenario"], row["mode"], f"{100 * row['omega']:.0f} % of the weights in HBM"]
    if row["skip"] is not None:
        told.append(f"skip {row['skip']:g}")
    if row["skip_realised"] and row["skip_realised"] != row["skip"]:
        told.append(f"{100 * row['skip_realised']:.1f} % skipped")
    elsewhere = ("skip", "mode", "omega", "scenario", "trace")
    told += [f"{key} {_value(value)}" for key, value in settings.items() if key not in elsewhere and value is not None]
    return " · ".join(told)


def _table(rows: pl.DataFrame, options: Sequence[str], is_one_of_several: bool) -> Iterator[str]:
    first = rows.row(0, named=True)
    records = list(rows.iter_rows(named=True))
    names = [[row["placement"], row["migration"], *(_value(row[key]) for key in options)] for row in records]
    widths = [max(len(name[i]) for name in [["", "", *options], *names]) + 3 for i in range(2 + len(options))]
    label = max(sum(widths), 32)

    def line(left: str, cells: Sequence[str], remark: str = "") -> str:
        return f"{left:<{label}}{''.join(f'{cell:>12}' for cell in cells)}   {remark}".rstrip()

    yield line("".join(f"{name:<{width}}" for name, width in zip(["", "", *options], widths, strict=True)), _HEAD)
    yield line("lower bound (any capacity)", [_seconds(first["lb0_s"])])
    yield line("lower bound (any policy)", [_seconds(first["lb1_s"])])
    yield line("lower bound (these weights)", [_seconds(first["lb1_at_weights_s"]), "100 %"])
    if first["lb2_s"] is not None:
        part = first["lb1_at_weights_s"] / first["lb2_s"] if first["lb2_s"] else 1.0
        yield line("lower bound (linear program)", [_seconds(first["lb2_s"]), _percent(part)])
    if first["best_s"] is not None:
        yield line("reads at the best share", [_seconds(first["best_s"])])
    most = _MOST_OF_SEVERAL if is_one_of_several else len(records)
    for row, name in list(zip(records, names, strict=True))[:most]:
        cells = [
            _seconds(row["time_s"]),
            _percent(row["oracle_share"]),
            _NOTHING if row["mean_alpha_bytes"] is None else f"{row['mean_alpha_bytes']:.3f}",
            format_rate(row["migrated_bytes"]).removesuffix("/s") if row["migrated_bytes"] else _NOTHING,
        ]
        left = "".join(f"{part:<{width}}" for part, width in zip(name, widths, strict=True))
        yield line(left, cells, "clairvoyant" if row["clairvoyant"] else "")
    if len(records) > most:
        yield f"… {figures.count(len(records) - most, 'slower pair')}"


def _seconds(seconds: float) -> str:
    """A simulated time in four digits or more: they are there to be compared."""
    if seconds >= 1000:
        return f"{seconds:,.0f} s"
    return f"{seconds:#.4g} s" if seconds >= 1 else f"{seconds * 1000:#.4g} ms"


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %".replace("100.0 %", "100 %")


def _value(value: object) -> str:
    if value is None:
        return _NOTHING
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
