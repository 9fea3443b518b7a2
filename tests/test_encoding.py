"""Prompts made ready: what the model's context holds of them."""

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
