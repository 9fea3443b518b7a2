from penstock.jobs.errors import Tally


def test_a_tally_keeps_the_first_line_of_each_code() -> None:
    tally = Tally()
    for code, line in [("a", 7), ("b", 3), ("a", 5), ("a", 9)]:
        tally.add(code, line)
    other = tally.copy()
    other.add("b", 1)
    assert (tally.total, tally.counts, tally.first) == (4, {"a": 3, "b": 1}, {"a": 5, "b": 3})
    assert (other.total, other.first) == (5, {"a": 5, "b": 1})
