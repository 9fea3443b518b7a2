import random
from collections.abc import Sequence

import numpy as np
import pytest

from penstock.plan import pipeline
from penstock.plan.pipeline import Step

PAGES = 64


def step(compute_s: float, read_s: float, upload_s: float = 0.0, streams: bool = True) -> Step:
    return Step(np.array([compute_s]), np.array([read_s]), np.array([upload_s]), None, streams)


def even(compute_s: float, read_s: float) -> list[Step]:
    return [step(compute_s, read_s)] * PAGES


def pipelined(steps: Sequence[Step], slots: int, fixed: float, jitter: float = 0.0) -> float:
    return float(pipeline.pipelined(steps, slots, np.array([fixed]), jitter)[0])


def test_the_longer_lane_hides_the_shorter() -> None:
    assert pipelined(even(2.0, 1.0), 2, 0.0) == pytest.approx(2 * PAGES)
    assert pipelined(even(1.0, 2.0), 2, 0.0) == pytest.approx(2 * PAGES)
    assert pipelined(even(1.0, 2.0), 2, 5.0) == pytest.approx(2 * PAGES + 5 - 2)  # a page comes meanwhile


def test_one_slot_hides_nothing() -> None:
    assert pipelined(even(2.0, 1.0), 1, 0.0) == pytest.approx(3 * PAGES)


def test_what_rests_is_only_computed() -> None:
    assert pipelined([step(2.0, 1.0, streams=False)] * PAGES, 2, 1.0) == pytest.approx(2 * PAGES + 1)


def test_a_page_that_takes_longer_to_compute_lets_the_next_ones_come() -> None:
    steps = [step(5.0 if i % 4 == 0 else 0.5, 1.5) for i in range(PAGES)]
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
        steps = [step(1.0, 1 + draw.choice((-0.3, 0.3))) for _ in range(4000)]
        at_random = pipelined(steps, slots, 0.0) / 4000
        assert pipelined(even(1.0, 1.0), slots, 0.0, jitter=0.3) / PAGES == pytest.approx(at_random, rel=0.05)


def test_sweeps_reckoned_side_by_side_are_those_reckoned_alone() -> None:
    draw = np.random.default_rng(0)
    sweeps = 20
    compute, read, upload, portion = draw.random((4, PAGES, sweeps))
    portion *= draw.random((1, sweeps)) < 0.5  # half of the sweeps carry nothing beside their pages

    def steps(of: slice) -> list[Step]:
        return [
            Step(compute[i, of], read[i, of], upload[i, of], (portion[i, of], 2 * portion[i, of]), i % 3 > 0)
            for i in range(PAGES)
        ]

    fixed = draw.random(sweeps)
    many = pipeline.pipelined(steps(slice(None)), 3, fixed, 0.2)
    alone = [pipeline.pipelined(steps(slice(i, i + 1)), 3, fixed[i : i + 1], 0.2)[0] for i in range(sweeps)]
    assert many == pytest.approx(alone, rel=1e-12)


def test_portions_come_at_most_a_layer_ahead() -> None:
    """What is carried for a page waits until the page before it is computed; pages themselves come ahead."""
    carried = Step(np.ones(1), np.zeros(1), np.zeros(1), (np.full(1, 0.5), np.zeros(1)), False)
    assert pipelined([carried] * PAGES, 2, 0.0) == pytest.approx(PAGES)
    slow = carried._replace(portions=(np.full(1, 3.0), np.zeros(1)))
    assert pipelined([slow] * PAGES, 2, 0.0) == pytest.approx(3 * PAGES)
