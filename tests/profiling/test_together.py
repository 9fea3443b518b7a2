import os
from pathlib import Path

import pytest

from penstock.model.pages import Extent
from penstock.profiling.place import Place
from penstock.profiling.together import lost, measure_together


def test_the_part_that_is_lost() -> None:
    assert lost(100, 92) == pytest.approx(0.08)
    assert lost(100, 103) == 0


def test_both_at_once(place: Place, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(os.urandom(1 << 20))
    found = measure_together(place, [Extent(str(tmp_path / "weights"), 0, 1 << 20, 0)], 0.1, tokens=8, width=64)
    assert 1e5 < found.read.bytes_per_s < 1e12
    assert 0 <= found.compute_loses < 1 and 0 <= found.disk_loses < 1
