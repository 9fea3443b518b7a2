from pathlib import Path

import numpy as np
import pytest

from penstock.errors import UserError
from penstock.trace.figure import draw, figure
from penstock.trace.info import TraceInfo, inspect
from penstock.trace.skip_trace import TraceShape
from penstock.trace.synth import synth


@pytest.fixture(scope="module")
def info() -> TraceInfo:
    return inspect(synth(TraceShape(500, 600, 4), 0.3))


def test_panels_show_what_was_counted(info: TraceInfo) -> None:
    skipping, overlap, bar = figure(info, "a.skip").axes
    picture = skipping.images[0].get_array()
    assert picture is not None and picture.shape == (4, 256)
    assert np.mean(picture) == pytest.approx(100 * info.skip, abs=0.5)
    (line,) = overlap.lines
    assert np.mean(np.asarray(line.get_ydata())) == pytest.approx(100 * (info.overlap or 0), abs=0.5)
    assert f"{100 * info.skip:.1f} %" in skipping.get_title("left")
    assert bar.get_ylabel() == "% of tokens skipped"


@pytest.mark.parametrize("steps", [1, 2, 300])
@pytest.mark.parametrize("skip", [0, 1])
def test_traces_without_anything_are_drawn(steps: int, skip: float, tmp_path: Path) -> None:
    draw(inspect(synth(TraceShape(50, steps, 1), skip)), "a.skip", tmp_path / "a.svg")
    assert "</svg>" in (tmp_path / "a.svg").read_text()


def test_kinds_of_files(info: TraceInfo, tmp_path: Path) -> None:
    for name, begin in (("a.png", b"\x89PNG"), ("a.SVG", b"<?xml")):
        draw(info, "a.skip", tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begin)
    draw(info, "a.skip", tmp_path / "b.svg")
    assert (tmp_path / "a.SVG").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_place_that_cannot_be_written(info: TraceInfo, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        draw(info, "a.skip", tmp_path / "nowhere" / "a.png")
