from penstock.profiling.place import Place
from penstock.profiling.traffic import measure_traffic


def test_a_rate_in_the_bytes_that_the_planner_counts(place: Place) -> None:
    assert 1e6 < measure_traffic(place, 0.02, tokens=16, hidden=128, ffn=256) < 1e12
