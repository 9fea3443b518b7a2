import os
from pathlib import Path

import pytest

from penstock.model.pages import Extent
from penstock.profiling.disk import pages_of
from penstock.profiling.place import Place
from penstock.profiling.together import lost, measure_together


def test_the_part_that_is_lost() -> None:
    assert lost(100, 92) == pytest.approx(0.08)
    assert lost(100, 103) == 0


def test_both_at_once(place: Place, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(os.urandom(1 << 20))
    pages = pages_of([Extent(str(tmp_path / "weights"), 0, 1 << 20, 0)])
    losses = measure_together(place, pages, 0.1, tokens=8, width=64)
    assert all(0 <= part < 1 for part in losses)
