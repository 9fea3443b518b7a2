"""What a question says of its job, and what it leaves to search."""

import pytest
from tests.plan.asking import asking

from penstock.plan.policy import Shares
from penstock.plan.types import Length

CPU = Shares(cpu=1.0)


def test_a_job_of_prompts_that_are_alike() -> None:
    asked = asking(prompt_len=10, gen_len=3, num_prompts=4)
    assert asked.rows_of_job() == [Length(10, 3)] * 4
    assert (asked.job.prompts, asked.job.mean_tokens, asked.job.longest_prompt) == (4, 13, 10)


def test_prompts_that_are_known_are_shared_unless_nothing_can_be() -> None:
    ids = [[1, 2], [1, 2, 3]]
    asked = asking(lengths=[(2, 5), (3, 5)], prompts=ids)
    assert [row.ids for row in asked.rows_of_job()] == ids
    assert [row.ids for row in asked.rows_of_job(sharing=False)] == [None, None]
    static = asking(lengths=[(2, 5), (3, 5)], prompts=ids, batch_size=1, num_batches=2)
    assert [row.ids for row in static.rows_of_job()] == [None, None]


def test_a_row_takes_a_sweep_for_each_token_that_it_generates_and_few_for_its_prompt() -> None:
    assert asking(prompt_len=512, gen_len=128).row_sweeps == 128
    assert asking(prompt_len=4096, gen_len=128).row_sweeps == 131
    assert asking(prompt_len=512, gen_len=128, sweep_tokens=64).row_sweeps == 135
    assert asking(lengths=[(10, 5), (10, 50)]).row_sweeps == 50


@pytest.mark.parametrize(
    ("bounds", "most"),
    [
        ({}, None),
        ({"latency_s": 12.8}, pytest.approx(0.1)),
        ({"token_s": 0.05}, 0.05),
        ({"latency_s": 12.8, "token_s": 0.05}, 0.05),
        ({"latency_s": 1.28, "token_s": 0.05}, pytest.approx(0.01)),
    ],
)
def test_the_tighter_bound_holds_a_sweep(bounds: dict[str, float], most: float | None) -> None:
    assert asking(prompt_len=512, gen_len=128, **bounds).most_sweep_s == most


@pytest.mark.parametrize(
    ("wishes", "has_some", "is_all"),
    [
        ({}, False, False),
        ({"cpu_memory": 1 << 30, "no_disk": True, "machine": "h100"}, False, False),
        ({"rows": 3}, True, False),
        ({"kv_bits": 4}, True, False),
        ({"attention": "cpu"}, True, False),
        ({"weights": CPU, "kv": CPU}, True, False),
        ({"weights": CPU, "kv": CPU, "rows": 3}, True, True),
        ({"weights": CPU, "kv": CPU, "batch_size": 3, "num_batches": 2}, True, True),
    ],
)
def test_what_is_fixed(wishes: dict[str, object], has_some: bool, is_all: bool) -> None:
    asked = asking(**wishes)
    assert (asked.has_wishes, asked.is_given) == (has_some, is_all)
