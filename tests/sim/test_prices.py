"""What bytes cost, and how many of them the reader takes from copies."""

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.sim.prices import FULL, HALF, SERIAL, split_bytes

BYTES = st.integers(0, 60)
RATES = st.tuples(*[st.integers(1, 40)] * 4)


def exact_s(hbm: int, read: int, write: int, rates: tuple[int, int, int, int], duplex: int) -> Fraction:
    b_hbm, b_read, b_write, b_internal = rates
    interface = {
        FULL: max(Fraction(read, b_read), Fraction(write, b_write)),
        HALF: Fraction(read + write, b_read),
        SERIAL: Fraction(read, b_read) + Fraction(write, b_write),
    }[duplex]
    return max(Fraction(hbm, b_hbm), interface, Fraction(read + write, b_internal))


@settings(max_examples=150, deadline=None)
@given(BYTES, BYTES, BYTES, st.data(), RATES, st.sampled_from([FULL, HALF, SERIAL]))
def test_a_split_is_the_least_that_makes_a_step_shortest(
    hbm: int, read: int, write: int, data: st.DataObject, rates: tuple[int, int, int, int], duplex: int
) -> None:
    most = data.draw(st.integers(0, hbm))
    times = [exact_s(hbm - x, read + x, write, rates, duplex) for x in range(most + 1)]
    assert split_bytes(hbm, read, write, most, *rates, duplex) == times.index(min(times))
