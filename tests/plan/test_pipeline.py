import random

import pytest

from penstock.plan.pipeline import Step, pipelined

PAGES = 64


def even(compute_s: float, read_s: float, upload_s: float = 0.0) -> list[Step]:
    return [(compute_s, read_s, upload_s, 0.0, 0.0, True)] * PAGES


def test_the_longer_lane_hides_the_shorter() -> None:
    assert pipelined(even(2.0, 1.0), 2, 0.0) == pytest.approx(2 * PAGES)
    assert pipelined(even(1.0, 2.0), 2, 0.0) == pytest.approx(2 * PAGES)
    assert pipelined(even(1.0, 2.0), 2, 5.0) == pytest.approx(2 * PAGES + 5 - 2)  # a page comes meanwhile


def test_one_slot_hides_nothing() -> None:
    assert pipelined(even(2.0, 1.0), 1, 0.0) == pytest.approx(3 * PAGES)


def test_what_rests_is_only_computed() -> None:
    assert pipelined([(2.0, 1.0, 0.0, 0.0, 0.0, False)] * PAGES, 2, 1.0) == pytest.approx(2 * PAGES + 1)


def test_a_page_that_takes_longer_to_compute_lets_the_next_ones_come() -> None:
    steps = [(5.0 if i % 4 == 0 else 0.5, 1.5, 0.0, 0.0, 0.0, True) for i in range(PAGES)]
    slower, faster = pipelined(steps, 2, 0.0), pipelined(steps, 4, 0.0)
    assert faster == pytest.approx(PAGES / 4 * 6.5)
    assert slower > 1.05 * faster


def test_two_slots_lose_by_reads_that_vary_and_more_even_them_out() -> None:
    two, three = (pipelined(even(1.0, 1.0), slots, 0.0, jitter=0.3) / PAGES for slots in (2, 3))
    assert two == pytest.approx(1.15)  # every other page is late, and each of those holds up both lanes by 0.3
    assert three == pytest.approx(1.0)
    assert pipelined(even(1.0, 1.0), 2, 0.0) == pytest.approx(PAGES)


def test_it_foretells_pages_that_vary_at_random() -> None:
    draw = random.Random(0)
    for slots in (2, 3):
        steps = [(1.0, 1 + draw.choice((-0.3, 0.3)), 0.0, 0.0, 0.0, True) for _ in range(4000)]
        at_random = pipelined(steps, slots, 0.0) / 4000
        assert pipelined(even(1.0, 1.0), slots, 0.0, jitter=0.3) / PAGES == pytest.approx(at_random, rel=0.05)
