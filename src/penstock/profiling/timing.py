"""How long something takes, within a time that is given beforehand."""

import time
from collections.abc import Callable
from statistics import median


def median_s(work: Callable[[], object], budget_s: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median seconds of one run, of as many as fit the budget.

    The first run warms up: it counts only where the budget has no room for a second one.
    """
    start = before = clock()
    taken: list[float] = []
    while not taken or before - start + min(taken) <= budget_s:
        work()
        after = clock()
        taken.append(after - before)
        before = after
    return median(taken[1:] or taken)
