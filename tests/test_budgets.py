"""Budgets that cannot work: the refusal names the tier and a value, and a run with that value does work."""

import re

import pytest
import torch
from tests.parity import families

from penstock import LLM, SamplingParams, UserError
from penstock.budgets import Budgets
from penstock.memory.device import CpuDevice

PROMPTS = [{"prompt_token_ids": list(range(3, 3 + length))} for length in (9, 40, 5)]
GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
HOW = {"dtype": "float32", "page_bytes": 20_000, "unchecked": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    families.build("llama").save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def answers(model):
    return generated(model)


def generated(model, **how):
    with LLM(model, **HOW, **how) as llm:
        return [out.outputs[0].token_ids for out in llm.generate(PROMPTS, GREEDY)]


@pytest.mark.parametrize(
    ("budget", "how"),
    [
        ("gpu_memory", {"device": "emulated"}),
        ("gpu_memory", {"device": "emulated", "kv": "cpu=50%,disk=50%", "weights": "gpu=50%,disk=50%"}),
        ("disk_memory", {"kv": "disk=100%"}),
        ("disk_memory", {"kv": "cpu=50%,disk=50%", "activations": "disk=100%", "batch_tokens": 16, "sweep_tokens": 64}),
        ("disk_memory", {"device": "emulated", "kv": "disk=100%"}),
    ],
)
def test_the_value_that_a_refusal_names_works(model, answers, budget, how):
    flag = "--" + budget.replace("_", "-")
    with pytest.raises(UserError, match=f"^{flag} 1 B is too small") as refused:
        generated(model, **how, **{budget: 1})
    least = re.search(r"The least that works is (\d+MiB)\.$", str(refused.value))
    assert least is not None, refused.value
    assert generated(model, **how, **{budget: least[1]}) == answers


def test_what_is_kept_free_of_a_budget_grows_with_it(tmp_path):
    """So the least that is named must be enough for its own slack, however small the budget was that was given."""
    asked = {"gpu": None, "cpu": 1 << 20, "disk": None}
    ledger = Budgets(asked, CpuDevice(), tmp_path).ledger(0)
    needed = 20 << 30
    granted = Budgets({**asked, "cpu": ledger.least("cpu", needed)}, CpuDevice(), tmp_path).ledger(0)
    assert abs(granted.free("cpu") - needed) < 64 << 20  # what is taken differs a little from one moment to the next
