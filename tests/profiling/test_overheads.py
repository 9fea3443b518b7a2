import pytest

from penstock.machine.machine import Curve
from penstock.profiling.overheads import Swept, besides, measure_overheads, overheads_of
from penstock.profiling.place import Place


def test_terms_are_told_apart() -> None:
    swept = [
        Swept(pages, calls, rows, 0.001 + 0.0003 * pages * calls + 0.00002 * rows)
        for pages in (9, 33)
        for calls, rows in ((1, 8), (4, 32), (1, 32))
    ]
    found = overheads_of(swept, (1000, 9000), (0.00011, 0.00019), (8, 64), (0.0058, 0.017))
    assert found.sweep_s == pytest.approx(0.001)
    assert found.visit_s == pytest.approx(0.0003)
    assert found.row_s == pytest.approx(0.00002)
    assert found.logit_s == pytest.approx(1e-8)
    assert found.expert_s == pytest.approx(2e-4)


def test_a_tiny_model_in_the_real_engine(place: Place) -> None:
    found = measure_overheads(
        place,
        0.05,
        Curve.flat(1e12),
        1e-6,
        layers=(1, 3),
        cuts=((4, 4), (8, 4)),
        vocabularies=(64, 4096),
        experts=(2, 32),
    )
    assert 1e-6 < found.visit_s < 1
    assert 1e-6 < found.expert_s < 1
    assert found.sweep_s >= 0 and found.row_s >= 0 and found.logit_s >= 0


def test_what_the_products_own_arithmetic_takes_is_no_overhead() -> None:
    assert besides(0.008, 0.001) == pytest.approx(0.007)
    assert besides(0.008, 0.1) == 0.004, "a curve measured while something else ran leaves half of it"
