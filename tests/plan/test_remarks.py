"""What is told beside a plan."""

from dataclasses import replace

from tests.cli.fake_planner import PREDICTION

from penstock.plan.plan import Use
from penstock.plan.question import Question
from penstock.plan.remarks import bounds, job, nothing_beside, too_long
from penstock.plan.types import Asked

ASKED = Question(lengths=[(100, 10), (50, 20)])


def test_a_job_in_words() -> None:
    assert job(ASKED) == "2 prompts of 75 tokens, 15 to generate"
    assert job(Question(num_prompts=1)) == "1 prompt of 512 tokens, 128 to generate"


def test_bounds_are_answered_by_what_the_longest_row_takes() -> None:
    assert list(bounds(ASKED, PREDICTION)) == []  # a sweep of which takes 13.4 s
    assert list(bounds(replace(ASKED, latency_s=300.0, token_s=10.0), PREDICTION)) == [
        "a row takes 4 min 28 s from its first prompt token to its last token, within the 5 min 00 s allowed",
        "a row waits 13.4 s for each token, and nothing that was tried keeps to the 10.0 s allowed",
    ]


def test_prompts_that_a_context_does_not_hold_with_a_token_more() -> None:
    assert list(too_long(ASKED, None)) == list(too_long(ASKED, 101)) == []
    assert list(too_long(ASKED, 100)) == [
        "1 prompt is longer than the model's context of 100 tokens allows, and a run refuses them"
    ]
    assert "2 prompts are longer" in next(too_long(ASKED, 10))


def test_attention_beside_a_gpu_that_holds_all_kv_changes_nothing() -> None:
    beside, full, empty = replace(ASKED, asked=Asked(attention="cpu")), Use(9, 0, 0, 5, 0, 0), Use(9, 0, 0, 0, 0, 0)
    (told,) = nothing_beside(beside, {"gpu": full, "cpu": empty, "disk": empty})
    assert told.startswith("--attention cpu changes nothing")
    for memory in ({"gpu": full, "cpu": full}, {"gpu": empty, "cpu": full}, {"cpu": full}):
        assert not list(nothing_beside(beside, memory))
    assert not list(nothing_beside(ASKED, {"gpu": full, "cpu": empty}))
