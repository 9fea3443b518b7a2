import pytest

from penstock.profiling.fits import fit_line, fit_terms


def test_a_line_through_exact_times() -> None:
    line = fit_line([1, 10, 100], [2.5, 7.0, 52.0])
    assert (line.fixed_s, line.each_s) == pytest.approx((2.0, 0.5))
    assert line.seconds(4) == pytest.approx(4.0)


def test_small_times_weigh_as_much_as_large_ones() -> None:
    line = fit_line([1, 2, 1000], [1.0, 2.0, 1100.0])
    assert line.seconds(1) == pytest.approx(1.0, rel=0.1)
    assert line.seconds(1000) == pytest.approx(1100, rel=0.1)


def test_terms_of_several_kinds() -> None:
    amounts = [(1, 9, 8), (1, 36, 32), (1, 9, 32), (1, 33, 8), (1, 132, 32)]
    seconds = [0.002 + 0.0004 * visits + 0.00003 * rows for _, visits, rows in amounts]
    assert fit_terms(amounts, seconds) == pytest.approx([0.002, 0.0004, 0.00003])


def test_nothing_costs_less_than_nothing() -> None:
    assert fit_line([1, 2], [1.0, 3.0]).fixed_s == 0.0
    assert fit_terms([(1, 1), (1, 2)], [2.0, 1.0])[1] == 0.0
