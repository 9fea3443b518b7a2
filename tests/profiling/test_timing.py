from itertools import accumulate

from penstock.profiling.timing import median_s


def run(takes: list[float], budget_s: float) -> tuple[float, int]:
    """The median of work that takes so long each time, and how often it was done."""
    moments = accumulate(takes, initial=0.0)
    done = []
    return median_s(lambda: done.append(1), budget_s, lambda: next(moments)), len(done)


def test_the_first_run_warms_up() -> None:
    assert run([5.0, 1.0, 1.0, 3.0, 1.0], 10.0) == (1.0, 4)


def test_one_run_counts_where_there_is_time_for_no_other() -> None:
    assert run([5.0, 1.0], 9.0) == (5.0, 1)
