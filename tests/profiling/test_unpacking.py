from penstock.profiling.place import Place
from penstock.profiling.unpacking import measure_unpacking


def test_a_rate_in_elements(place: Place) -> None:
    assert 1e5 < measure_unpacking(place, 0.02, elements=1 << 14) < 1e12
