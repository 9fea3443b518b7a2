"""The answer of a simulation as a person reads it: bounds first, then the pairs of policies, the fastest first."""

from collections.abc import Iterator, Sequence

import polars as pl

from penstock.cli import figures
from penstock.sim.readable import heading, percent, plain, seconds, share, size
from penstock.sim.table import swept_columns, varied

_MOST_OF_SEVERAL = 12  # rows of a table where there are several
_HEAD = ("time", "of bound", "mean alpha", "moved")


def answer(frame: pl.DataFrame, options: Sequence[str]) -> Iterator[str]:
    """The lines of all tables. options: swept keys that are policies' own, which tell rows apart, not tables."""
    settings = [name for name in varied(frame) if name not in options]
    groups = [rows for _, rows in frame.group_by(settings, maintain_order=True)] if settings else [frame]
    shown_options = [name for name in (*swept_columns(frame), "budget") if name in options]
    for number, rows in enumerate(groups):
        if number:
            yield ""
        yield heading(rows, settings)
        yield from _table(rows.sort("time_s", maintain_order=True), shown_options, len(groups) > 1)


def _table(rows: pl.DataFrame, options: Sequence[str], is_one_of_several: bool) -> Iterator[str]:
    first = rows.row(0, named=True)
    records = list(rows.iter_rows(named=True))
    names = [[row["placement"], row["migration"], *(plain(row[key], key) for key in options)] for row in records]
    widths = [max(len(name[i]) for name in [["", "", *options], *names]) + 3 for i in range(2 + len(options))]
    label = max(sum(widths), 32)

    def line(left: str, cells: Sequence[str], remark: str = "") -> str:
        return f"{left:<{label}}{''.join(f'{cell:>12}' for cell in cells)}   {remark}".rstrip()

    yield line("".join(f"{name:<{width}}" for name, width in zip(["", "", *options], widths, strict=True)), _HEAD)
    yield line("lower bound (any capacity)", [seconds(first["lb0_s"])])
    yield line("lower bound (any policy)", [seconds(first["lb1_s"])])
    yield line("lower bound (these weights)", [seconds(first["lb1_at_weights_s"]), percent(1.0)])
    if first["lb2_s"] is not None:
        part = first["lb1_at_weights_s"] / first["lb2_s"] if first["lb2_s"] else 1.0
        yield line("lower bound (linear program)", [seconds(first["lb2_s"]), percent(part)])
    if first["best_s"] is not None:
        yield line("reads at the best share", [seconds(first["best_s"])])
    most = _MOST_OF_SEVERAL if is_one_of_several else len(records)
    for row, name in list(zip(records, names, strict=True))[:most]:
        cells = [
            seconds(row["time_s"]),
            percent(row["oracle_share"]),
            share(row["mean_alpha_bytes"]),
            size(row["migrated_bytes"]),
        ]
        left = "".join(f"{part:<{width}}" for part, width in zip(name, widths, strict=True))
        yield line(left, cells, "clairvoyant" if row["clairvoyant"] else "")
    if len(records) > most:
        yield f"… {figures.count(len(records) - most, 'slower pair')}"
