from typing import Any

import pytest

from penstock.errors import UserError
from penstock.sampling import Sampling, SamplingParams, eos_ids, resolve, unheeded

LLAMA = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [7, 9], "bos_token_id": 1}


def test_nothing_said_is_greedy_with_256_tokens() -> None:
    assert resolve() == Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=0, max_tokens=256)
    assert resolve(generation_config={"temperature": 0.6, "top_p": 0.9}).greedy


@pytest.mark.parametrize(
    ("request_says", "flag_says", "model_says", "expected"),
    [
        ({}, {}, LLAMA, (0.6, 0.9, 0)),
        ({"temperature": 0}, {}, LLAMA, (0.0, 1.0, 0)),
        ({"temperature": 0.0}, {"temperature": 0.8}, LLAMA, (0.0, 1.0, 0)),
        ({}, {"temperature": 0.8}, LLAMA, (0.8, 0.9, 0)),
        ({"temperature": 0.3, "top_p": 1.0}, {"temperature": 0.8, "top_k": 5}, LLAMA, (0.3, 1.0, 5)),
        ({"temperature": 0.7}, {}, {}, (0.7, 1.0, 0)),
        ({"top_p": 0.5}, {}, {}, (1.0, 0.5, 0)),
        ({"top_k": -1}, {}, {"top_k": 20, "do_sample": True}, (1.0, 1.0, 0)),
        ({"seed": 3}, {}, {}, (0.0, 1.0, 0)),
    ],
)
def test_who_speaks_first(
    request_says: Any, flag_says: Any, model_says: Any, expected: tuple[float, float, int]
) -> None:
    resolved = resolve(SamplingParams(**request_says), model_says, SamplingParams(**flag_says))
    assert (resolved.temperature, resolved.top_p, resolved.top_k) == expected


def test_what_else_a_model_asks_for_is_named() -> None:
    assert unheeded(LLAMA) == []
    assert unheeded({"repetition_penalty": 1.0, "num_beams": 1, "min_p": None, "bad_words_ids": []}) == []
    asked = {**LLAMA, "repetition_penalty": 1.05, "suppress_tokens": list(range(90))}
    assert unheeded(asked) == ["repetition_penalty 1.05", "suppress_tokens"]


def test_length_and_ends() -> None:
    assert resolve(generation_config={"max_new_tokens": 40}).max_tokens == 40
    assert resolve(SamplingParams(max_tokens=3), {"max_new_tokens": 40}, SamplingParams(max_tokens=9)).max_tokens == 3
    assert resolve(SamplingParams(stop_token_ids=[4]), LLAMA).stop_ids == {4, 7, 9}
    assert resolve(SamplingParams(stop_token_ids=[4]), LLAMA, SamplingParams(ignore_eos=True)).stop_ids == {4}
    assert resolve(SamplingParams(ignore_eos=False), LLAMA, SamplingParams(ignore_eos=True)).stop_ids == {7, 9}
    assert resolve(SamplingParams(stop="END")).stop == ("END",)
    assert resolve(SamplingParams(stop=["a", "b"])).stop == ("a", "b")


@pytest.mark.parametrize(("given", "ids"), [(None, set()), (2, {2}), (0, {0}), ([2, 3], {2, 3})])
def test_eos_ids(given: object, ids: set[int]) -> None:
    assert eos_ids({"eos_token_id": given}) == ids


def test_nearly_zero_temperature_is_greedy() -> None:
    assert Sampling(temperature=1e-9).greedy and Sampling(temperature=1.0, top_k=1).greedy
    assert not Sampling(temperature=0.01).greedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "0.5"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("top_k", -2),
        ("top_k", 1.0),
        ("top_k", True),
        ("seed", 1.5),
        ("seed", 2**64),
        ("max_tokens", 0),
        ("max_tokens", "many"),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", [3]),
        ("stop", 3),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", ["a"]),
        ("stop_token_ids", [True]),
        ("stop_token_ids", "12"),
        ("ignore_eos", 1),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{name} is .*: give ") as caught:
        SamplingParams(**{name: value})
    assert "\n" not in str(caught.value)


def test_a_model_that_asks_for_the_impossible_is_named() -> None:
    with pytest.raises(UserError, match=r"generation_config cannot be used: top_p is 7"):
        resolve(generation_config={"top_p": 7})
