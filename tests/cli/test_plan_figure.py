import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.cli.fake_planner import GIB, PLAN, PREDICTION

from penstock.cli.plan_figure import Roof, draw, figure, svg
from penstock.errors import UserError
from penstock.plan.plan import SteadySweep, Use

ALL_IN_MEMORY = replace(
    PLAN,
    memory={"cpu": Use(2 * GIB, 0, 3 * GIB, 0, 0, 0)},
    predicted=replace(PREDICTION, steady=SteadySweep(0.1, 64, 64, {"cpu-compute": 0.09}), hidden_tokens=0.0),
    curve=(),
)


def test_png(tmp_path: Path) -> None:
    draw(PLAN, tmp_path / "plan.PNG")
    assert (tmp_path / "plan.PNG").read_bytes().startswith(b"\x89PNG")


def test_svg_is_the_same_every_time() -> None:
    drawn = svg(PLAN)
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert svg(PLAN) == drawn


def test_a_page_stands_alone(tmp_path: Path) -> None:
    draw(replace(PLAN, job="<2,000 prompts>"), tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text()
    assert page.count("<svg") == 1
    assert "&lt;2,000 prompts&gt;" in page
    assert "<2,000" not in page
    assert not re.search(r"(src|href)=\"https?:", page)
    for said in ("disk→cpu twice as fast", "static split", "18.2 GiB", "8,192", "T*"):
        assert said in page


def test_panels_ask_and_answer() -> None:
    titles = [axes.get_title(loc="left") for axes in figure(PLAN).axes]
    assert titles == [
        "Where does every byte rest?",
        "What does a sweep wait for? disk→cpu most",
        "What would more rows bring? ×10.0 with 8,192 of them",
    ]
    assert all(axes.get_xlabel() for axes in figure(PLAN).axes)


def test_bars_hold_what_the_plan_says() -> None:
    placement = figure(PLAN).axes[0]
    widths = [bar.get_width() for bar in placement.patches]
    assert sum(widths) == pytest.approx(3, abs=1e-3)  # three whole budgets
    assert max(widths[:5]) == pytest.approx(5.1 / 12, abs=1e-3)


def test_a_plan_without_streams_or_that_does_not_fit_can_be_drawn() -> None:
    placement, timeline, throughput = figure(ALL_IN_MEMORY).axes
    assert "1 GiB short" in " ".join(text.get_text() for text in placement.texts)
    assert timeline.get_xlabel().startswith("ms of a sweep")
    assert "Nothing streams" in throughput.get_title(loc="left")


def test_roof() -> None:
    roof = Roof.of(PLAN)
    assert roof is not None
    computed = (960_000 + 298_000) / 300_000
    assert roof.knee == pytest.approx(11_400 / computed)
    assert roof.at(100) == pytest.approx(100 / 11.6)
    assert roof.at(10**6) == pytest.approx(11_400 / computed / 11.6)
    assert Roof.of(ALL_IN_MEMORY) is None


def test_no_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written: No such file"):
        draw(ALL_IN_MEMORY, tmp_path / "none" / "plan.svg")


def test_what_is_read_in_place_is_no_part_of_the_budget() -> None:
    disk = replace(PLAN.memory["disk"], budget=GIB, in_place=PLAN.memory["disk"].weights)
    placement = figure(replace(PLAN, memory={**PLAN.memory, "disk": disk})).axes[0]
    assert sum(bar.get_width() for bar in placement.patches) == pytest.approx(3, abs=1e-3)
    assert "33.4 GiB weights read in place · 1 GiB free" in [text.get_text() for text in placement.texts]
