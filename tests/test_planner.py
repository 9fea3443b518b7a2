"""Questions answered for machines that are not at hand, from configs alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.engine.shape import model_shape
from penstock.errors import UserError
from penstock.machine.presets import preset
from penstock.plan.plan import Plan
from penstock.plan.policy import Shares
from penstock.plan.question import Question
from penstock.planner import computing_on, make_plan, meet, shape_of

CPU = Shares(cpu=1.0)

OPT = {
    "model_type": "opt",
    "architectures": ["OPTForCausalLM"],
    "hidden_size": 512,
    "word_embed_proj_dim": 512,
    "ffn_dim": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "torch_dtype": "float16",
}
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "torch_dtype": "float16",
}


def config(directory: Path, values: dict[str, Any]) -> str:
    path = directory / "config.json"
    path.write_text(json.dumps(values))
    return str(path)


def question(**more: Any) -> Question:
    return Question(prompt_len=32, gen_len=4, num_prompts=8, machine="t4-flexgen", **more)


def planned(directory: Path, values: dict[str, Any], **more: Any) -> Plan:
    return make_plan(config(directory, values), question(cost_model="flexgen", **more))


def test_flexgen_s_model_is_told_beside_the_default_one(tmp_path: Path) -> None:
    told = planned(tmp_path, OPT)
    assert told.baseline is not None and told.baseline.best is not None
    assert told.predicted.total_tok_s > 0 and told.baseline.of_policy.predicted.tok_s > 0
    assert not any("heads" in line or "an ffn" in line for line in told.baseline.assumes)
    assert make_plan(config(tmp_path, OPT), question()).baseline is None


def test_of_shared_heads_it_is_said_what_the_equations_assume(tmp_path: Path) -> None:
    told = planned(tmp_path, LLAMA)
    assert told.baseline is not None
    assert any("2 KiB a token and layer; this model keeps 512 B" in line for line in told.baseline.assumes)


def test_a_machine_without_a_gpu_is_none_that_the_equations_know(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no gpu"):
        make_plan(
            config(tmp_path, OPT), question(cost_model="flexgen").__class__(machine="m-class", cost_model="flexgen")
        )


def test_the_shape_is_that_which_is_planned_for(tmp_path: Path) -> None:
    model = config(tmp_path, LLAMA)
    assert shape_of(model, question()) == model_shape(meet(model, question()).model)


@pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads", "num_key_value_heads"])
def test_a_size_of_zero_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"is 0, which|hidden_size 0|by zero") as refused:
        shape_of(config(tmp_path, {**LLAMA, name: 0}), question())
    assert "\n" not in str(refused.value)


NO_DISK = """
[memory]
cpu = "{memory}"
[processors.cpu]
attention = "20GFLOP/s"
kv_bytes_per_s = "10GB/s"
activation_bytes_per_s = "10GB/s"
products.float32 = "100GFLOP/s"
"""


def without_disk(directory: Path, memory: str) -> str:
    path = directory / "small.toml"
    path.write_text(NO_DISK.format(memory=memory))
    return str(path)


def test_a_machine_without_a_disk_holds_everything_in_memory(tmp_path: Path) -> None:
    asked = Question(prompt_len=32, gen_len=4, num_prompts=8, machine=without_disk(tmp_path, "2GiB"))
    told = make_plan(config(tmp_path, LLAMA), asked)
    assert told.placement is None and told.policy.weights == Shares(cpu=1.0)
    with pytest.raises(UserError, match=r"resident pages .* The least that works is"):
        make_plan(config(tmp_path, LLAMA), replace(asked, machine=without_disk(tmp_path, "540MiB")))


def test_a_policy_that_overflows_a_machine_without_a_disk_is_priced(tmp_path: Path) -> None:
    machine = without_disk(tmp_path, "540MiB")
    told = make_plan(config(tmp_path, LLAMA), Question(machine=machine, weights=CPU, kv=CPU, rows=1000))
    assert not told.fits and told.memory["cpu"].short > 0


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        (
            {"weights": Shares(gpu=0.5, cpu=0.5), "kv": Shares(cpu=1.0), "rows": 4},
            "--weights puts 50% on gpu, and M4 laptop",
        ),
        ({"kv": Shares(gpu=1.0)}, "--kv puts 100% on gpu"),
        ({"attention": "gpu"}, "--attention gpu: M4 laptop has no gpu; leave it out"),
    ],
)
def test_tiers_that_a_machine_does_not_have_are_refused(tmp_path: Path, wishes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_plan(config(tmp_path, LLAMA), Question(machine="m-class", **wishes))


def test_a_gpu_that_does_not_compute_is_left_out() -> None:
    both = preset("rtx4090")
    alone = computing_on("cpu", both)
    assert alone.compute == "cpu" and "gpu" not in alone.memory
    assert computing_on("gpu", both) is both
    with pytest.raises(UserError, match="measured without its gpu"):
        computing_on("gpu", alone)
