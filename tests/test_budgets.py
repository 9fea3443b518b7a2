"""Budgets that cannot work: the refusal names the tier and a value, and a run with that value does work."""

import gc
import re
import tracemalloc

import pytest
import torch
from tests.parity import families
from transformers import AutoModelForCausalLM, LlamaConfig

from penstock import LLM, SamplingParams, UserError
from penstock.budgets import Budgets
from penstock.cli import main
from penstock.encoding import held_bytes, job_of
from penstock.machine import limits
from penstock.memory.device import CpuDevice
from penstock.outlook import Outlook
from penstock.plan.types import Job

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
        ("gpu_memory", {"device": "emulated", "compute_cpu_layers": 1}),
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


def test_what_prompts_and_answers_take_in_memory_is_counted_before_anything_is_read(model, tmp_path):
    asked = {"gpu": None, "cpu": 4 << 30, "disk": None}
    without, held = (Budgets(asked, CpuDevice(), tmp_path).ledger(0, held).taken["cpu"] for held in (0, 1 << 30))
    assert (1 << 30) - (16 << 20) < held - without < (1 << 30) + (16 << 20)  # the process grows meanwhile
    jobs = []

    class Noted(LLM):
        def run(self, items, job, *more):
            jobs.append((held_bytes(items), job.held))
            return super().run(items, job, *more)

    with Noted(model, **HOW, cpu_memory="4GiB") as llm:
        llm.generate(PROMPTS, GREEDY)
        assert jobs == [(3 * 1024 + 54 * 24 + 18 * 40,) * 2]
        with pytest.raises(UserError, match=r"^--cpu-memory 4 GiB is too small"):
            LLM.run(llm, [], Job(3, 46, 46, 40, held=4 << 30), Outlook(0))


@pytest.mark.parametrize(("length", "new"), [(4, 1), (50, 1), (4, 40)])
def test_prompts_and_answers_take_no_more_than_is_counted(tmp_path, length, new):
    """Their tokens are whole numbers of their own, as in a large vocabulary."""
    config = LlamaConfig(**{**families.GQA, "vocab_size": 3000})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    params = SamplingParams(max_tokens=new, temperature=1, seed=1, ignore_eos=True)
    prompts = [{"prompt_token_ids": [300 + (7 * i + 31 * j) % 2600 for j in range(length)]} for i in range(160)]

    def most(llm, items):
        """Bytes that Python takes from the start of a run, when the first answer is there or all are."""
        run, answers, taken = llm.run(items, job, Outlook(len(items))), [], []
        tracemalloc.start()
        for answer in run:
            answers.append(answer)
            if len(answers) in (1, len(items)):
                gc.collect()
                taken.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        return max(taken)

    with LLM(str(tmp_path), **HOW, rows=16) as llm:
        items = [llm.encoder.item(i, prompt, params, False) for i, prompt in enumerate(prompts)]
        job = job_of(items)
        list(llm.run(items, job, Outlook(len(items))))  # compiles kernels, and fills what is kept between runs
        more = most(llm, items) - most(llm, items[:32])  # what sweeps take is the same for both
    counted = held_bytes(items[32:])
    assert counted / 2 < more < counted


@pytest.fixture(scope="module")
def planned(model, tmp_path_factory):
    """A plan for 3 GiB of cpu and a disk of which nothing was said."""
    path = str(tmp_path_factory.mktemp("planned") / "plan.json")
    flags = ["--dtype", "float32", "--prompt-len", "40", "--gen-len", "6", "--num-prompts", "3"]
    assert main(["plan", model, *flags, "--cpu-memory", "3GiB", "--save", path]) == 0
    return path


@pytest.mark.parametrize(("flags", "allowed"), [({}, 3 << 30), ({"cpu_memory": "4GiB"}, 4 << 30)])
def test_a_saved_plan_runs_within_its_budgets_or_larger_ones(model, planned, flags, allowed):
    with LLM(model, dtype="float32", unchecked=True, plan=planned, **flags) as llm:
        assert len(llm.generate(PROMPTS, GREEDY)) == 3
        assert llm.last_run["budget_bytes"]["cpu"] == allowed


def test_a_budget_that_a_saved_plan_does_not_fit_is_refused_with_one_that_it_does(model, planned):
    how = {"dtype": "float32", "unchecked": True, "plan": planned}
    told = r"^--cpu-memory 64 MiB is too small for --plan, which puts .* beside .*: give (\d+)MiB, or plan again$"
    with LLM(model, **how, cpu_memory="64MiB") as llm, pytest.raises(UserError, match=told) as refused:
        llm.generate(PROMPTS, GREEDY)
    enough = re.search(told, str(refused.value))[1]
    with LLM(model, **how, cpu_memory=f"{enough}MiB") as llm:
        assert len(llm.generate(PROMPTS, GREEDY)) == 3


def test_what_a_plan_was_made_for_binds_as_far_as_it_is_free(tmp_path):
    asked = {"gpu": None, "cpu": None, "disk": 3 << 30}
    planned = {"cpu": 1 << 30, "disk": 1 << 30, "gpu": 1 << 30}
    budgets = Budgets(asked, CpuDevice(), tmp_path, planned)
    assert budgets.ledger(0).budget == {"gpu": 0, "cpu": 1 << 30, "disk": 3 << 30}
    assert (budgets.disk, Budgets({**asked, "disk": None}, CpuDevice(), tmp_path, planned).disk) == (3 << 30, 1 << 30)
    endless = Budgets(asked, CpuDevice(), tmp_path, {"cpu": 1 << 60}).ledger(0).budget["cpu"]
    assert endless < limits.memory_limit_bytes()
