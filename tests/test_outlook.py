"""What is left of a run, by what was read and generated so far."""

from types import SimpleNamespace
from typing import Any

import pytest

from penstock.jobs.survey import Survey
from penstock.outlook import JobOutlook, Outlook


def item(prompt_tokens: int, max_tokens: int) -> Any:
    return SimpleNamespace(ids=[1] * prompt_tokens, sampling=SimpleNamespace(max_tokens=max_tokens))


def parsed(nbytes: int) -> Any:
    return SimpleNamespace(prompt={"prompt": "x" * nbytes})


def sweep(rows: int) -> Any:
    return SimpleNamespace(drawn=dict.fromkeys(range(rows), 0))


def account(**counted: int) -> Any:
    return SimpleNamespace(**{"tokens_out": 0, "prefill_tokens": 0, "decode_tokens": 0, "shared_tokens": 0, **counted})


def test_prompts_that_are_all_known_leave_what_they_may_generate() -> None:
    outlook = Outlook(2)
    assert outlook.seconds_left(account(), 1.0) is None
    for _ in range(2):
        outlook.added(item(5, 10))
    outlook.swept(sweep(2))
    outlook.ended(item(5, 10), generated=1)
    assert (outlook.prompts, outlook.tokens_left) == (2, 9)
    assert outlook.seconds_left(account(tokens_out=2), 4.0) == 18.0


def test_prompts_of_a_stream_are_counted_as_they_come() -> None:
    outlook = Outlook(0)
    for _ in range(3):
        outlook.added(item(1, 1))
    assert outlook.prompts == 3


def job() -> JobOutlook:
    """Four requests with prompts of 40 bytes in all, of which one was read: 10 bytes, 5 tokens, 8 to generate."""
    outlook = JobOutlook(Survey(to_go=4, prompt_bytes=40), lambda event: {**event, "seen": True})
    outlook.read(parsed(10), item(5, 8))
    return outlook


def test_a_job_takes_unread_prompts_to_be_like_those_it_read() -> None:
    outlook = job()
    assert outlook.tokens_a_byte == 0.5
    outlook.swept(sweep(1))
    assert outlook.tokens_left == 4 * 8 - 1
    # 15 tokens of prompts and 31 of answers at one token a second
    assert outlook.seconds_left(account(prefill_tokens=5, decode_tokens=1, tokens_out=1), 6.0) == pytest.approx(46)


def test_rows_that_end_early_make_a_job_shorter() -> None:
    outlook = job()
    for _ in range(3):
        outlook.ended(item(5, 8), generated=2)
    outlook.swept(sweep(6))
    assert outlook.tokens_left == round(4 * (3 * 2 + 8 * 8) / 11) - 6


def test_shared_tokens_are_not_computed_again() -> None:
    outlook = job()
    outlook.swept(sweep(0))
    whole = outlook.seconds_left(account(prefill_tokens=5), 5.0)
    half = outlook.seconds_left(account(prefill_tokens=5, shared_tokens=5), 5.0)
    assert whole == pytest.approx(15 + 32) and half == pytest.approx(10 * 0.5 + 32)


def test_a_request_that_cannot_run_is_no_more_to_come() -> None:
    outlook = job()
    outlook.refused(parsed(10))
    outlook.swept(sweep(0))
    assert (outlook.prompts, outlook.tokens_left) == (3, 24)
    assert outlook.told({"kind": "sweep"}) == {"kind": "sweep", "seen": True}
