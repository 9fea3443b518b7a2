"""Quantised checkpoints: every parameter is bit for bit what transformers dequantises, by rows and packed too."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.quantized_files import BLOCK, dequantized, fp8_of, spread, write_fp8, write_mxfp4
from tests.model.test_conversion import skeleton
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig, Qwen3MoeConfig

from penstock.errors import UserError
from penstock.model.conversion import Converted, plan_parameters
from penstock.model.fp8_parameter import Fp8Parameter
from penstock.model.mxfp4_parameter import Mxfp4Parameter
from penstock.model.quantized import Quantized
from penstock.model.safetensors_index import SafetensorsIndex
from penstock.model.stored import stored_sources
from penstock.quant.packed import Packed

SMALL = {
    "vocab_size": 48,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
MOE = Qwen3MoeConfig(
    num_experts=4, moe_intermediate_size=128, num_experts_per_tok=2, head_dim=64, decoder_sparse_step=1, **SMALL
)
OSS = GptOssConfig(num_local_experts=4, num_experts_per_tok=2, head_dim=64, **{**SMALL, "intermediate_size": 96})


def build(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.08)
    return model


def plan_of(path, config, quantized, dtype="bfloat16"):
    return plan_parameters(skeleton(config), stored_sources(SafetensorsIndex(path).tensors, quantized, dtype))


def assert_equal(plan, reference):
    """Sources load what transformers has, all of it and some rows, and so they do where they run packed."""
    assert plan.keys() == reference.keys()
    for name, source in plan.items():
        expected = reference[name]
        assert source.shape == tuple(expected.shape), name
        assert torch.equal(source.load().to(expected.dtype), expected), name
        rows = slice(len(expected) // 3, len(expected) - 1)
        assert torch.equal(source.load(rows.start, rows.stop).to(expected.dtype), expected[rows]), name
        if (form := getattr(source, "form", None)) is not None:
            turned = getattr(source, "turned", False)
            data = torch.from_numpy(source.packed(rows.start, rows.stop))
            wide = Packed(form, source.shape[-2 if turned else -1], data).wide(torch.float32)
            assert torch.equal(wide.transpose(-1, -2) if turned else wide, expected[rows].float()), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("block", "scales"),
    [(BLOCK, torch.float32), (BLOCK, torch.bfloat16), ((64, 32), torch.float32), (None, torch.float32)],
)
def test_fp8(block, scales, dtype, tmp_path):
    write_fp8(build(MOE), tmp_path, block, scales)
    reference = dequantized(tmp_path, getattr(torch, dtype)).state_dict()
    plan = plan_of(tmp_path, MOE, Quantized("fp8", block), dtype)
    assert_equal(plan, reference)
    experts = plan["model.layers.1.mlp.experts.gate_up_proj"]
    assert isinstance(experts, Fp8Parameter)
    assert (experts.form is not None) == (dtype == "bfloat16" and block != (64, 32)), "rows hold whole groups' scales"


def test_mxfp4(tmp_path):
    write_mxfp4(build(OSS), tmp_path)
    reference = dequantized(tmp_path).state_dict()
    plan = plan_of(tmp_path, OSS, Quantized("mxfp4"))
    assert_equal(plan, reference)
    assert isinstance(plan["model.layers.0.mlp.experts.down_proj"], Mxfp4Parameter)
    assert plan_of(tmp_path, OSS, Quantized("mxfp4"), "float16")["model.layers.0.mlp.experts.down_proj"].form is None


@pytest.mark.parametrize("scales", [torch.float32, torch.float8_e8m0fnu, torch.uint8])
def test_blocks_at_the_ends_of_a_matrix_may_be_smaller(scales, tmp_path):
    """As published models have them whose widths are no multiples; transformers' fp8 layers read them so."""
    config = LlamaConfig(**{**SMALL, "hidden_size": 160, "intermediate_size": 200})
    model = build(config)
    kept = torch.float8_e8m0fnu if scales == torch.uint8 else scales
    write_fp8(model, tmp_path, scales=kept)
    if scales == torch.uint8:  # the same bytes under another name
        tensors = load_file(tmp_path / "model.safetensors")
        save_file(
            {n: t.view(scales) if t.dtype == kept else t for n, t in tensors.items()}, tmp_path / "model.safetensors"
        )
    reference = model.state_dict()
    for name, tensor in reference.items():
        if "proj" in name:
            codes, grid = fp8_of(tensor, BLOCK, kept)
            reference[name] = (codes.float() * spread(grid.float(), tensor, BLOCK)).bfloat16()
    plan = plan_of(tmp_path, config, Quantized("fp8", BLOCK))
    assert_equal(plan, reference)
    assert all(plan[name].form is not None for name in plan if "proj" in name)


def test_experts_of_which_some_are_not_quantised_are_converted(tmp_path):
    write_fp8(build(MOE), tmp_path)
    name = "model.layers.0.mlp.experts.2.down_proj.weight"
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[name] = tensors[name].float().bfloat16()
    del tensors[name + "_scale_inv"]
    save_file(tensors, tmp_path / "model.safetensors")
    source = plan_of(tmp_path, MOE, Quantized("fp8", BLOCK))["model.layers.0.mlp.experts.down_proj"]
    assert isinstance(source, Converted)
    assert torch.equal(source.load()[2], tensors[name])


Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"_scale_inv": None}, r"q_proj\.weight in fp8, and no model\.layers\.0\.self_attn\.q_proj\.weight_scale_inv"),
        ({"_scale_inv": torch.ones(3, 2)}, r"float32 of shape \[3, 2\], which are no scales of \[256, 256\] in fp8"),
        ({"_scale_inv": torch.ones(0, 2)}, r"float32 of shape \[0, 2\], which are no scales"),
        ({"_scale_inv": torch.ones(2, 2, dtype=torch.int32)}, r"_inv holds int32 of shape \[2, 2\]"),
        ({"": torch.ones(256, 256).to(torch.float8_e5m2)}, r"q_proj\.weight as float8_e5m2 of shape .* with scales"),
        (
            {"": torch.ones(256).to(torch.float8_e4m3fn)},
            r"float8_e4m3fn of shape \[256\] with scales",
        ),
    ],
)
def test_codes_and_scales_that_do_not_fit_are_refused(changes, what, tmp_path):
    write_fp8(build(MOE), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors") | {Q + end: value for end, value in changes.items()}
    save_file({n: t for n, t in tensors.items() if t is not None}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=what):
        plan_of(tmp_path, MOE, Quantized("fp8", BLOCK))


def test_what_is_no_number_is_refused(tmp_path):
    write_mxfp4(build(OSS), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.mlp.experts.down_proj_scales"][1, 2, 0] = 255
    save_file(tensors, tmp_path / "model.safetensors")
    source = plan_of(tmp_path, OSS, Quantized("mxfp4"))["model.layers.0.mlp.experts.down_proj"]
    assert source.packed(0, 1).shape[0] == 1
    with pytest.raises(UserError, match=r"down_proj_blocks holds MXFP4 scales that are not numbers"):
        source.packed(1, 2)
