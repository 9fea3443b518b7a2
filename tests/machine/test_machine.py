import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.machine.machine import Curve, Link, Machine, Processor

MEASURED = Curve(((1.0, 10.0), (4.0, 40.0), (64.0, 160.0)))


@pytest.mark.parametrize(
    ("size", "rate"), [(0.5, 10), (1, 10), (2, 20), (4, 40), (16, 80), (64, 160), (1000, 160), (0, 10)]
)
def test_a_curve_goes_through_its_points_and_straight_in_logarithms(size: float, rate: float) -> None:
    assert MEASURED.at(size) == pytest.approx(rate)


@given(size=st.floats(min_value=0, max_value=1e12))
def test_a_curve_stays_between_its_lowest_and_highest_rate(size: float) -> None:
    assert 10 <= MEASURED.at(size) <= 160 * (1 + 1e-12)


@given(size=st.floats(min_value=0, max_value=1e12))
def test_a_flat_curve_is_the_same_everywhere(size: float) -> None:
    assert Curve.flat(7.0).at(size) == 7.0


def test_a_link_takes_its_latency_for_each_transfer_and_nothing_for_nothing() -> None:
    link = Link(bytes_per_s=100.0, latency_s=0.5)
    assert link.seconds(200) == 2.5
    assert link.seconds(200, transfers=4) == 4.0
    assert link.seconds(0, transfers=4) == 0.0


def test_layers_are_computed_on_the_gpu_where_there_is_one() -> None:
    processor = Processor({"float32": Curve.flat(1.0)}, Curve.flat(1.0), 1.0, 1.0)
    host = Machine("host", {"cpu": 1}, {}, {"cpu": processor})
    assert host.compute == "cpu"
    assert Machine("both", {"cpu": 1, "gpu": 1}, {}, {"cpu": processor, "gpu": processor}).compute == "gpu"
