"""Every parameter must be bit-equal with what transformers' own loading makes of the same files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from penstock.errors import UserError
from penstock.model.conversion import Converted, plan_parameters
from penstock.model.parameter_source import Raw, read_runs
from penstock.model.safetensors_index import SafetensorsIndex
from penstock.model.stored import stored_sources

SMALL = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MLA = {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
FAMILIES = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "qwen3-moe": ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 16, "decoder_sparse_step": 1}),
    "gpt-oss": ("gpt_oss", {"num_local_experts": 4, "head_dim": 8}),
    "deepseek-v3": (
        "deepseek_v3",
        {**MLA, "v_head_dim": 8, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16},
    ),
    "gpt2": ("gpt2", {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "phi3": ("phi3", {}),
    "gemma3-text": ("gemma3_text", {"head_dim": 8}),
}


def build(family: str, dtype: torch.dtype = torch.bfloat16) -> torch.nn.Module:
    model_type, extra = FAMILIES[family]
    config = CONFIG_MAPPING[model_type](**{**SMALL, **extra})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)  # norms and biases too: equal values would hide a swap
    return model


def skeleton(config) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def plan_of(directory: Path, config):
    return plan_parameters(skeleton(config), stored_sources(SafetensorsIndex(directory).tensors))


def assert_equal_to_transformers(directory: Path, config) -> dict:
    plan = plan_of(directory, config)
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").state_dict()
    assert plan.keys() == reference.keys()
    for name, source in plan.items():
        assert source.shape == tuple(reference[name].shape), name
        assert torch.equal(source.load().to(reference[name].dtype), reference[name]), name
    return plan


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_from_pretrained(family, tmp_path):
    model = build(family)
    model.save_pretrained(tmp_path, max_shard_size="40KB")  # small enough that each family is sharded
    assert (tmp_path / "model.safetensors.index.json").exists()
    plan = assert_equal_to_transformers(tmp_path, model.config)
    assert all(isinstance(source, Raw) for source in plan.values()), "each of these can be read without converting"


def test_rows_of_merged_experts_are_addressed_alone(tmp_path):
    model = build("mixtral")
    model.save_pretrained(tmp_path)
    source = plan_of(tmp_path, model.config)["model.layers.1.mlp.experts.gate_up_proj"]
    whole = model.state_dict()["model.layers.1.mlp.experts.gate_up_proj"]
    one = source.extents(2, 3)
    assert sum(nbytes for _, _, nbytes in one) == whole[0].nbytes
    assert torch.equal(torch.frombuffer(read_runs(one), dtype=torch.bfloat16).view(whole[2].shape), whole[2])
    assert torch.equal(source.load(1, 3), whole[1:3])
    assert source.load(2, 2).shape == (0, *whole.shape[1:])


def test_a_file_that_goes_away_is_said(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path)
    source = plan_of(tmp_path, model.config)["lm_head.weight"]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read any more \(No such file or directory\)"):
        source.load(0, 1)


def test_rows_of_a_plain_matrix(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path)
    source = plan_of(tmp_path, model.config)["lm_head.weight"]
    ((_, offset, nbytes),) = source.extents(5, 9)
    assert (offset - source.parts[0][1], nbytes) == (5 * 32 * 2, 4 * 32 * 2)
    assert torch.equal(source.load(5, 9), model.lm_head.weight[5:9])


def test_tied_names_share_a_source(tmp_path):
    model = build("llama-tied")
    model.save_pretrained(tmp_path)
    plan = plan_of(tmp_path, model.config)
    assert plan["lm_head.weight"] is plan["model.embed_tokens.weight"]


@pytest.mark.parametrize("same", [True, False])
def test_tied_names_that_are_both_stored(tmp_path, same):
    model = build("llama-tied")
    model.save_pretrained(tmp_path)
    rewrite(
        tmp_path, lambda stored: stored | {"lm_head.weight": stored["model.embed_tokens.weight"] + (0 if same else 1)}
    )
    plan = assert_equal_to_transformers(tmp_path, model.config)
    assert (plan["lm_head.weight"] is plan["model.embed_tokens.weight"]) == same


@pytest.mark.parametrize("head", [True, False])
def test_base_model_without_its_prefix(tmp_path, head):
    model = build("llama" if head else "llama-tied")
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda stored: {name.removeprefix("model."): tensor for name, tensor in stored.items()})
    assert_equal_to_transformers(tmp_path, model.config)


def test_text_model_of_a_larger_checkpoint(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path)
    rewrite(
        tmp_path,
        lambda stored: (
            {f"outer.language_model.{name}": tensor for name, tensor in stored.items()}
            | {"outer.vision.layers.0.mlp.up_proj.weight": torch.zeros(3, 3)}
        ),
    )
    plan = plan_of(tmp_path, model.config)
    for name, tensor in model.state_dict().items():
        assert torch.equal(plan[name].load(), tensor), name


@pytest.mark.parametrize("model_type", ["gemma3", "qwen3_5", "llava"])
def test_text_model_of_a_multimodal_checkpoint(tmp_path, model_type):
    from penstock.model.source import text_config

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "depth": 1}
    vision |= {"image_size": 28, "patch_size": 14, "num_heads": 2, "out_hidden_size": 32}
    text = SMALL | {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 32, "interleave_moe_layer_step": 1}
    kind = CONFIG_MAPPING[model_type]
    if model_type in ("llava", "mistral3"):
        text["model_type"] = "mistral"
    config = kind(text_config=text, vision_config=vision)
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    whole.save_pretrained(tmp_path)
    plan = plan_of(tmp_path, text_config(config))
    state = (
        whole.model.language_model.state_dict() if hasattr(whole, "model") else whole.language_model.model.state_dict()
    )
    matched = 0
    for name, source in plan.items():
        inner = name.removeprefix("model.")
        if inner in state:
            matched += 1
            assert torch.equal(source.load(), state[inner]), name
    assert matched == len(state)


def test_arithmetic_and_transposes_are_converted(tmp_path, monkeypatch):
    from transformers.core_model_loading import Transpose, WeightConverter

    import penstock.model.conversion as conversion

    model = build("llama", torch.float32)
    model.save_pretrained(tmp_path)
    expected = model.state_dict()
    rewrite(tmp_path, lambda stored: {k: v.T.contiguous() if "up_proj" in k else v for k, v in stored.items()})
    converter = WeightConverter("mlp.up_proj.weight", "mlp.up_proj.weight", operations=[Transpose(0, 1)])
    monkeypatch.setattr(conversion, "get_model_conversion_mapping", lambda model: [converter])
    plan = plan_of(tmp_path, model.config)
    source = plan["model.layers.0.mlp.up_proj.weight"]
    assert isinstance(source, Converted)
    assert source.dtype == "float32"
    assert torch.equal(source.load(), expected["model.layers.0.mlp.up_proj.weight"])
    assert torch.equal(source.load(3, 7), expected["model.layers.0.mlp.up_proj.weight"][3:7])


def test_split_tensors_stay_raw(tmp_path, monkeypatch):
    from transformers.core_model_loading import Chunk, WeightConverter

    import penstock.model.conversion as conversion

    model = build("llama")
    model.save_pretrained(tmp_path)
    expected = model.state_dict()

    def fuse(stored):
        for layer in range(2):
            parts = [stored.pop(f"model.layers.{layer}.mlp.{name}_proj.weight") for name in ("gate", "up")]
            stored[f"model.layers.{layer}.mlp.fused.weight"] = torch.cat(parts)
        return stored

    rewrite(tmp_path, fuse)
    targets = ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
    converter = WeightConverter("mlp.fused.weight", targets, operations=[Chunk(0)])
    monkeypatch.setattr(conversion, "get_model_conversion_mapping", lambda model: [converter])
    plan = plan_of(tmp_path, model.config)
    for name in expected:
        assert isinstance(plan[name], Raw)
        assert torch.equal(plan[name].load(), expected[name]), name


def test_missing_tensors_are_named_and_counted(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda stored: {name: tensor for name, tensor in stored.items() if "mlp" not in name})
    with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.gate_proj\.weight, .* and 3 more\.$"):
        plan_of(tmp_path, model.config)


def test_missing_expert_is_named(tmp_path):
    model = build("mixtral")
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda stored: {name: tensor for name, tensor in stored.items() if "experts.3.w2" not in name})
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.experts\.down_proj of shape \[3, 32, 64\].*\[4, 32, 64\]"):
        plan_of(tmp_path, model.config)


def test_experts_of_unequal_shapes(tmp_path):
    model = build("mixtral")
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda stored: {k: v[:-1].clone() if "0.w2" in k else v for k, v in stored.items()})
    with pytest.raises(UserError, match=r"experts\.down_proj cannot be made from the checkpoint's 4 tensors"):
        plan_of(tmp_path, model.config)


def test_wrong_shape_names_both(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda stored: stored | {"lm_head.weight": torch.zeros(47, 32)})
    with pytest.raises(UserError, match=r"lm_head\.weight of shape \[47, 32\].*\[48, 32\]"):
        plan_of(tmp_path, model.config)


def test_file_cut_after_planning(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path)
    plan = plan_of(tmp_path, model.config)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10_000])
    with pytest.raises(UserError, match=r"model\.safetensors became shorter"):
        for source in plan.values():
            source.load()


def rewrite(directory: Path, change) -> None:
    """Change what a single-file checkpoint stores."""
    file = directory / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    assert json.loads((directory / "config.json").read_text())
