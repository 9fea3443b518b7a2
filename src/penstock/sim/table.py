"""Rows as a typed table: its columns, its files, and how it is read back.

A table has the columns of ``Row`` in their order, then one for each swept key that is not among them, named by the key.
A swept option of policies is null where a policy has no such option.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import get_args, get_type_hints

import polars as pl

from penstock.directories import shown
from penstock.part_file import PartFile
from penstock.sim.row import Row

Value = str | float | int | bool | None

SETTINGS = (
    "scenario",
    "placement",
    "migration",
    "skip",
    "trace",
    "mode",
    "passive",
    "budget",
    "init",
    "omega",
    "phi",
    "prefill_tokens",
    "decode_tokens",
    "hbm_capacity_bytes",
)


def columns() -> dict[str, type[pl.DataType]]:
    """The columns that every table has, with their types."""
    types: Mapping[object, type[pl.DataType]] = {str: pl.String, bool: pl.Boolean, int: pl.Int64, float: pl.Float64}
    return {name: types[_plain(hint)] for name, hint in get_type_hints(Row).items()}


def table(rows: Iterable[tuple[Row, Mapping[str, Value]]]) -> pl.DataFrame:
    """Rows with their swept keys and values, in the order given; no rows make an empty table of the same columns."""
    given = ({**swept, **asdict(row)} for row, swept in rows)
    records = [{k: shown(v) if isinstance(v, str) else v for k, v in record.items()} for record in given]
    more = dict.fromkeys(key for record in records for key in record if key not in _NAMES)
    base = pl.DataFrame({name: [record[name] for record in records] for name in _NAMES}, schema=columns(), strict=False)
    swept = [pl.Series(key, [record.get(key) for record in records], strict=False) for key in more]
    return base.with_columns(swept)


def swept_columns(frame: pl.DataFrame) -> tuple[str, ...]:
    """The columns that a sweep added."""
    return tuple(name for name in frame.columns if name not in _NAMES)


def varied(frame: pl.DataFrame) -> tuple[str, ...]:
    """Settings, besides placement and migration, and swept keys that take more than one value: what tables group by.

    Shares that follow from the others, as `omega` does from `init`, are not among them.
    """
    candidates = [name for name in (*SETTINGS, *swept_columns(frame)) if name not in ("placement", "migration")]
    several = [name for name in candidates if frame[name].drop_nulls().n_unique() > 1]
    for share in ("phi", "omega"):
        others = [name for name in several if name != share]
        if share in several and others and _combinations(frame, others) == _combinations(frame, several):
            several = others
    return tuple(several)


def write_table(directory: Path, frame: pl.DataFrame) -> Sequence[Path]:
    """Write results.csv and results.parquet, each whole or as it was before, and return their paths."""
    csv, parquet = directory / "results.csv", directory / "results.parquet"
    for path, write in ((csv, frame.write_csv), (parquet, frame.write_parquet)):
        with PartFile(path) as whole:
            write(whole.part)
    return csv, parquet


def _combinations(frame: pl.DataFrame, names: Sequence[str]) -> int:
    return frame.select(names).unique().height


def _plain(hint: object) -> object:
    """The type of a field without its None."""
    if isinstance(hint, UnionType):
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
    return hint


_NAMES = tuple(field.name for field in fields(Row))
