"""What is said of a model is what its files hold; what is said of a budget is what the rule does with it."""

import json

import pytest
import torch
import transformers

from penstock.describe import describe


@pytest.fixture(scope="module")
def config():
    return transformers.LlamaConfig(
        num_hidden_layers=3,
        hidden_size=256,
        intermediate_size=768,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=2048,
        max_position_embeddings=500,
        tie_word_embeddings=True,
    )


@pytest.fixture(scope="module")
def checkpoint(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("described")
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(path)
    return path, sum(p.numel() for p in model.parameters())


def test_shape(checkpoint):
    path, parameters = checkpoint
    facts = describe(str(path), dtype="bfloat16")
    assert (facts["name"], facts["family"], facts["layers"], facts["context"]) == (path.name, "llama", 3, 500)
    assert facts["parameters"] == parameters
    assert facts["bytes"] == pytest.approx(2 * parameters, rel=0.03), "pages are whole sectors"
    assert facts["kv_bytes_per_token"] == 2 * 3 * 2 * 32 * 2, "keys and values, layers, heads, dim, bfloat16"
    assert facts["dtype"] == {"stored": "bfloat16", "compute": "bfloat16", "kv": "bfloat16"}
    assert (facts["state_bytes_per_row"], facts["converted_bytes"]) == (0, 0)
    assert 0 < facts["page_bytes_max"] < facts["bytes"]
    assert json.loads(json.dumps(facts)) == facts


def test_plenty_holds_everything(checkpoint):
    facts = describe(str(checkpoint[0]), cpu_memory="64GiB")
    held = facts["holds"]
    assert held["budget_bytes"]["cpu"] == 64 << 30
    assert held["weights_bytes"] == {"cpu": facts["bytes"]}
    assert held["rows"] == held["prompts"]
    assert held["prompt_tokens"] + held["new_tokens"] == held["row_tokens"] == 500, "no longer than the context"


def test_too_little_says_the_least_that_works(checkpoint):
    assert "The least that works is" in describe(str(checkpoint[0]), cpu_memory="1MiB")["holds"]["refusal"]


def test_another_dtype_is_converted(checkpoint):
    facts = describe(str(checkpoint[0]), dtype="float16")
    assert facts["converted_bytes"] == facts["bytes"] - facts["core_bytes"]


def test_a_config_alone(config, tmp_path):
    config.save_pretrained(tmp_path)
    facts = describe(str(tmp_path), random_weights=True, dtype="bfloat16")
    assert facts["parameters"] > 0 and facts["layers"] == 3
    assert not list(tmp_path.glob("*.safetensors"))
