from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.sim.rows import ROW

from penstock.sim.result import Series
from penstock.sim.row import CURVE_POINTS, curve_of
from penstock.sim.table import columns, swept_columns, table, varied, write_table


def test_an_empty_table_has_the_columns_of_a_full_one() -> None:
    full = table([(ROW, {})])
    assert table([]).schema == full.schema
    assert dict(full.schema) == columns()
    assert full["ext_read_bytes"].dtype == pl.Int64
    assert full.row(0, named=True)["phi"] is None


def test_what_a_sweep_adds_is_null_where_it_does_not_apply() -> None:
    swept = table([(ROW, {"target": 0.7}), (replace(ROW, migration="none"), {})])
    assert swept_columns(swept) == ("target",)
    assert swept["target"].to_list() == [0.7, None]


def test_a_swept_setting_is_the_column_that_is_there_already() -> None:
    swept = table([(ROW, {"mode": "exclusive"}), (replace(ROW, mode="inclusive"), {"mode": "inclusive"})])
    assert swept_columns(swept) == ()
    assert varied(swept) == ("mode",)


def test_shares_that_follow_from_other_settings_tell_nothing_apart() -> None:
    ratio = replace(ROW, init="ratio", omega=0.85, phi=0.85)
    assert varied(table([(ROW, {}), (ratio, {})])) == ("init",)
    assert varied(table([(ROW, {}), (replace(ROW, omega=0.5), {})])) == ("omega",)


def test_files_read_back_as_the_table(tmp_path: Path) -> None:
    made = table([(ROW, {"bandwidths.hbm": 10}), (replace(ROW, id="b", skip=None), {"bandwidths.hbm": 20})])
    csv, parquet = write_table(tmp_path, made)
    assert pl.read_parquet(parquet).equals(made)
    assert pl.read_csv(csv)["time_s"].to_list() == [ROW.time_s, ROW.time_s]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results.parquet"]


@pytest.mark.parametrize("steps", [1, 5, CURVE_POINTS, 5 * CURVE_POINTS + 3])
def test_a_thinned_series_keeps_its_sums_and_its_end(steps: int) -> None:
    items = np.arange(steps)
    series = Series(time_s=np.linspace(1, 2, steps), alpha=np.full(steps, 0.5), hbm_items=items)
    curve = curve_of(series, weights_bytes=7, kv_bytes=2)
    assert len(curve.step) == min(steps, CURVE_POINTS)
    assert curve.step[-1] == steps - 1
    sizes = np.diff(curve.step, prepend=-1)
    assert (curve.ms_per_token * sizes).sum() == pytest.approx(series.time_s.sum() * 1000)
    assert curve.hbm_bytes.tolist() == [7 + 2 * items[step] for step in curve.step]


def test_portions_without_reads_have_no_alpha() -> None:
    alpha = np.array([np.nan, 0.25])
    curve = curve_of(Series(time_s=np.ones(2), alpha=alpha, hbm_items=np.zeros(2, int)), 0, 1)
    assert np.isnan(curve.alpha[0])
    assert curve.alpha[1] == 0.25
