"""What a report draws and tabulates: every setting once, every value with its unit, what is clairvoyant marked."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from tests.sim.rows import ROW

from penstock.sim.figure_style import LIGHT
from penstock.sim.plates import grouped, plates
from penstock.sim.row import Curve, Row
from penstock.sim.table import Value, table, varied


def frame(*rows: tuple[Row, Mapping[str, Value]]) -> pl.DataFrame:
    return table((replace(row, id=str(number)), swept) for number, (row, swept) in enumerate(rows))


NONE = replace(ROW, migration="none", clairvoyant=False, time_s=0.6, oracle_share=2 / 3)


def test_policies_without_a_swept_option_stand_beside_each_of_its_values() -> None:
    swept = frame((NONE, {}), *[(replace(ROW, time_s=time), {"target": time}) for time in (0.7, 0.8)])
    found = [(title, rows["migration"].to_list()) for title, rows in grouped(swept, varied(swept))]
    assert found == [("target 0.7", ["none", "alpha"]), ("target 0.8", ["none", "alpha"])]


def test_options_of_different_policies_are_combined() -> None:
    swept = frame(
        *[(replace(ROW, time_s=target), {"target": target, "window": None}) for target in (0.7, 0.8)],
        *[(NONE, {"target": None, "window": window}) for window in (4, 8)],
    )
    groups = grouped(swept, varied(swept))
    assert [title for title, _ in groups] == [f"target {t}, window {w}" for t in (0.7, 0.8) for w in (4, 8)]
    assert all(rows["migration"].to_list() == ["alpha", "none"] for _, rows in groups)


def test_settings_are_groups_of_their_own() -> None:
    levels = frame(
        *[(replace(ROW, skip=skip, mode=mode), {}) for mode in ("exclusive", "inclusive") for skip in (0, 1)]
    )
    assert [title for title, _ in grouped(levels, varied(levels))] == [
        f"skip {skip}, mode {mode}" for mode in ("exclusive", "inclusive") for skip in (0, 1)
    ]
    assert [title for title, _ in grouped(levels[:1], varied(levels[:1]))] == [""]


@pytest.mark.parametrize("values", [("900 GB/s", "2 TB/s"), (900 * 10**9, 2 * 10**12)])
def test_bandwidths_have_an_axis_however_they_were_written(values: tuple[Value, Value]) -> None:
    swept = frame(*[(ROW, {"bandwidths.hbm": value}) for value in values])
    (plate,) = [plate for plate in plates(swept, {}, {}) if plate.name == "against-bandwidths.hbm"]
    (axes,) = plate.draw(LIGHT).axes
    assert list(axes.lines[0].get_xdata()) == [9e11, 2e12]
    assert [cells[1] for cells in plate.cells] == ["900 GB/s", "2 TB/s"]
    assert axes.xaxis.get_major_formatter()(9e11, 0) == "900 GB/s"


def test_what_looks_ahead_is_marked_in_every_figure_and_table() -> None:
    curve = Curve(np.arange(3), np.ones(3), np.array([np.nan, 0.5, 0.7]), np.array([500, 900, 1000]))
    rows = frame(*[(replace(row, skip=skip), {}) for skip in (0.3, 0.6) for row in (ROW, NONE)])
    made = list(plates(rows, {str(number): curve for number in range(4)}, dict.fromkeys("0123", 0.85)))
    assert [plate.name for plate in made] == ["times-1", "times-2", "against-skip", "alpha", "occupancy", "gap"]
    for plate in made:
        figure = plate.draw(LIGHT)
        figure.draw_without_rendering()
        texts = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
        assert "◊ looks ahead in the trace, which no real system can" in texts
        marked = {text.replace(" ◊", "") for text in texts if text.endswith(" ◊")}
        assert marked <= {"alpha", "alpha, prefer-hbm", "80.0"} and marked
        assert any("clairvoyant" in cells for cells in plate.cells)


def test_a_figure_says_what_it_is_of_and_what_it_is_measured_against() -> None:
    curve = Curve(np.arange(3), np.ones(3), np.array([np.nan, 0.5, 0.7]), np.array([500, 900, 1000]))
    made = {plate.name: plate for plate in plates(frame((ROW, {})), {"0": curve}, {"0": 0.845})}
    for name, limit in (("alpha", 0.845), ("occupancy", 1.0)):
        figure = made[name].draw(LIGHT)
        assert figure.get_suptitle().startswith("small · exclusive · 100 % of the weights in HBM · skip 0.3")
        (axes,) = figure.axes
        assert list(axes.lines[-1].get_ydata()) == [limit, limit]
    assert made["occupancy"].cells == [["", "prefer-hbm", "alpha", "clairvoyant", "50.0 %", "80.0 %", "100 %"]]
    assert made["times"].cells == [
        ["prefer-hbm", "alpha", "clairvoyant", "500.0 ms", "80.0 %", "0.810", "75.0 %", "4 B"]
    ]


def test_bounds_are_called_what_they_are() -> None:
    (plate, *_) = plates(frame((ROW, {}), (NONE, {})), {}, {})
    (legend,) = plate.draw(LIGHT).legends
    assert [text.get_text() for text in legend.get_texts()][:2] == ["bound, these weights", "bound, any capacity"]
