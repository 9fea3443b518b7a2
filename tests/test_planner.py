"""Questions answered for machines that are not at hand, from configs alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.engine.shape import model_shape
from penstock.errors import UserError
from penstock.plan.plan import Plan
from penstock.plan.question import Question
from penstock.planner import make_plan, meet, shape_of

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
    with pytest.raises(UserError, match="is 0, which|hidden_size 0|by zero") as refused:
        shape_of(config(tmp_path, {**LLAMA, name: 0}), question())
    assert "\n" not in str(refused.value)
