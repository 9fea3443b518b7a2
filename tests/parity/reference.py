"""What transformers.generate answers, and when an answer of ours counts as the same."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

ROUNDING = 1e-4  # of the largest logit: by how much float32 logits may differ, and best tokens be as good as equal


@dataclass(frozen=True, slots=True)
class Answer:
    """Greedy tokens after a prompt, and the logits (tokens, vocabulary) that each was the best of."""

    prompt: list[int]
    tokens: list[int]
    logits: torch.Tensor


@torch.inference_mode()
def generate(model: Any, prompt: Sequence[int], count: int) -> Answer:
    """The model's answer; that of a fresh copy where rotary modules go by length, for these remember earlier calls.

    Where longrope switches, ``generate`` of transformers 5.5 does not compute earlier keys again: there the answer is
    that of whole calls, one for each token.
    """
    kinds = {str(vars(m).get("rope_type")) for m in model.modules()}
    if "longrope" in kinds:
        return _by_whole_calls(model, prompt, count)
    if "dynamic" in kinds:
        model = copy.deepcopy(model)
    ids = torch.tensor([list(prompt)])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return Answer(list(prompt), out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits).float())


def _by_whole_calls(model: Any, prompt: Sequence[int], count: int) -> Answer:
    ids, steps = list(prompt), []
    for _ in range(count):
        steps.append(copy.deepcopy(model)(torch.tensor([ids]), use_cache=False).logits[0, -1].float())
        ids.append(int(steps[-1].argmax()))
    return Answer(list(prompt), ids[len(prompt) :], torch.stack(steps))


def near_ties(
    answer: Answer, tokens: Sequence[int], logits: Mapping[int, torch.Tensor], rounding: float = ROUNDING
) -> int:
    """How often tokens part from the answer where its two best logits are within rounding: 0 or 1.

    logits: ours by position. rounding: as ROUNDING. Up to there everything must be the same, or AssertionError; what
    follows another token cannot be compared.
    """
    start = len(answer.prompt)
    assert len(tokens) == len(answer.tokens)
    assert sorted(logits) == list(range(start, start + len(tokens)))
    for at, (token, wanted, expected) in enumerate(zip(tokens, answer.tokens, answer.logits, strict=True)):
        scale = float(expected.abs().max())
        off = float((logits[start + at].float() - expected).abs().max()) / scale
        assert off < rounding, f"prompt of {start}: logits of token {at} are {off:.1e} off"
        if token != wanted:
            best, second = expected.topk(2).values.tolist()
            assert best - second < rounding * scale, f"prompt of {start}: token {at} is {token}, not {wanted}"
            return 1
    return 0
