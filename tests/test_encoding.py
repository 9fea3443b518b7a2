"""Prompts made ready: what the model's context holds of them."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.encoding import Encoder, Item, TooLong
from penstock.errors import UserError
from penstock.sampling import SamplingParams


def item(prompt: Any, context: int | None = 8, **params: Any) -> Item:
    blueprint: Any = SimpleNamespace(context=context, config=SimpleNamespace(vocab_size=10))
    return Encoder(blueprint, None, {}).item(0, prompt, SamplingParams(**params), chat=False)


def test_a_prompt_beyond_the_context_is_told_from_other_mistakes() -> None:
    assert len(item({"prompt_token_ids": [1] * 7}).ids) == 7
    with pytest.raises(TooLong, match="prompt 1 has 8 tokens; the model's context holds 8, one of them to generate"):
        item({"prompt_token_ids": [1] * 8})
    with pytest.raises(UserError, match="from 0 to 9") as caught:
        item({"prompt_token_ids": [10]})
    assert not isinstance(caught.value, TooLong)


@pytest.mark.parametrize(("asked", "given", "limited"), [(3, 3, False), (4, 3, True)])
def test_an_answer_ends_where_the_context_does(asked: int, given: int, limited: bool) -> None:
    made = item({"prompt_token_ids": [1] * 5}, max_tokens=asked)
    assert (made.sampling.max_tokens, made.limited) == (given, limited)
    assert not item({"prompt_token_ids": [1] * 5}, context=None, max_tokens=asked).limited


def test_a_prompt_may_say_settings_of_its_own() -> None:
    ids = [1, 2, 3]
    said = {"prompt_token_ids": ids, "max_tokens": 2, "custom_id": "q1", "user": "me", "n": 1}
    assert item(said, max_tokens=4, top_k=5).sampling == item({"prompt_token_ids": ids}, max_tokens=2, top_k=5).sampling
    assert item({"prompt_token_ids": ids, "prompt": None}, max_tokens=4).sampling.max_tokens == 4


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"multi_modal_data": {"image": 1}}, "prompt 1: multi_modal_data is not a field that is known: leave it out"),
        ({"n": 2}, "prompt 1: n is not supported except as 1: leave it out"),
        ({"max_tokens": 0}, "prompt 1: max_tokens is 0: give a whole number of 1 or more"),
        ({"prompt": "a"}, "prompt 1 is no text, nor a mapping with one of prompt, messages, prompt_token_ids"),
    ],
)
def test_what_a_prompt_says_and_nobody_would_heed_is_refused(said: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        item({"prompt_token_ids": [1], **said})


def test_stop_texts_need_a_tokenizer() -> None:
    with pytest.raises(UserError, match="prompt 1 has stop texts, and the model no tokenizer"):
        item({"prompt_token_ids": [1]}, stop="end")
    assert item({"prompt_token_ids": [1]}, stop_token_ids=[4]).sampling.stop_ids == {4}


def test_what_the_model_asks_for_and_cannot_be_is_told_at_once() -> None:
    blueprint: Any = SimpleNamespace(context=None, config=SimpleNamespace(vocab_size=10))
    for said, why in (
        ({"temperature": -1.0}, "the model's generation_config cannot be used: temperature is -1.0"),
        ({"eos_token_id": "</s>"}, "generation_config has eos_token_id '</s>': give a token id or a list"),
        ({"eos_token_id": [1, None]}, "generation_config has eos_token_id [1, None]"),
    ):
        with pytest.raises(UserError, match=re.escape(why)):
            Encoder(blueprint, None, said)
    Encoder(blueprint, None, {"temperature": None, "eos_token_id": [1, 2]})
