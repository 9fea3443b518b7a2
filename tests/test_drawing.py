"""Figures: one style that ends with its block, names as they are, and files or one line."""

from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from penstock import drawing
from penstock.errors import UserError


def drawn(title: str = "a title") -> Figure:
    with drawing.style():
        figure = Figure(figsize=(2, 1))
        figure.suptitle(title)
    return figure


def test_settings_hold_inside_alone() -> None:
    before = matplotlib.rcParams["axes.spines.top"]
    with drawing.style({"axes.spines.top": not before}):
        assert matplotlib.rcParams["axes.spines.top"] is not before
    assert matplotlib.rcParams["axes.spines.top"] is before


def test_the_same_figure_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.SVG", "a.png"):
        drawing.save(drawn(), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.SVG").read_bytes()
    assert (tmp_path / "a.svg").read_text() == drawing.svg(drawn())
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_names_with_dollars_are_no_formulas(tmp_path: Path) -> None:
    drawing.save(drawn("run$1$_\\frac{.skip"), tmp_path / "a.png")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--plot .*nowhere/a\.png cannot be written: No such file"):
        drawing.save(drawn(), tmp_path / "nowhere" / "a.png")
