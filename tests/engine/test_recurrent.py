"""Families whose layers keep a state per row generate the tokens that transformers generates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from penstock.llm import LLM
from penstock.sampling import SamplingParams

_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZE: dict[str, Any] = {"hidden_size": 32, "vocab_size": 100, "tie_word_embeddings": False, **_IDS}
_GQA: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, **_SIZE}
_DEEP: dict[str, Any] = {"num_hidden_layers": 4, **_GQA}
_MAMBA: dict[str, Any] = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_chunk_size": 8}
_DELTA: dict[str, Any] = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_MOE: dict[str, Any] = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
_SHARED: dict[str, Any] = {"shared_expert_intermediate_size": 16, **_MOE}
_LATENT: dict[str, Any] = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_LINEAR = ["linear_attention", "full_attention"] * 2
_ATTENDING = ["linear_attention", "full_attention", "linear_attention"]

FAMILIES: dict[str, Callable[[], Any]] = {
    "bamba": lambda: hf.BambaConfig(attn_layer_indices=[1], mamba_d_head=16, **_MAMBA, **_DEEP),
    "falcon_h1": lambda: hf.FalconH1Config(mamba_d_ssm=64, mamba_d_head=16, **_MAMBA, **_DEEP),
    "granitemoehybrid": lambda: hf.GraniteMoeHybridConfig(
        layer_types=["mamba", "attention"] * 2,
        num_local_experts=4,
        shared_intermediate_size=32,
        mamba_d_head=16,
        **_MAMBA,
        **_DEEP,
    ),
    "jamba": lambda: hf.JambaConfig(
        attn_layer_period=2, attn_layer_offset=1, num_experts=4, mamba_d_state=8, mamba_dt_rank=4, **_DEEP
    ),
    "kimi_linear": lambda: hf.KimiLinearConfig(
        moe_intermediate_size=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        linear_head_dim=8,
        linear_num_heads=4,
        layer_types=_LINEAR,
        mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
        **_LATENT,
        **{**_DEEP, "num_key_value_heads": 4},
    ),
    "lfm2": lambda: hf.Lfm2Config(layer_types=["conv", "full_attention"] * 2, block_multiple_of=8, **_DEEP),
    "lfm2_moe": lambda: hf.Lfm2MoeConfig(
        layer_types=["conv", "full_attention"] * 2, num_dense_layers=1, **_MOE, **_DEEP
    ),
    "nemotron_h": lambda: hf.NemotronHConfig(
        layers_block_type=["mamba", "moe", "attention", "mamba", "mlp"],
        head_dim=8,
        ssm_state_size=8,
        mamba_num_heads=4,
        mamba_head_dim=16,
        n_groups=2,
        chunk_size=8,
        n_routed_experts=4,
        moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16,
        **_GQA,
    ),
    "olmo_hybrid": lambda: hf.OlmoHybridConfig(layer_types=_LINEAR, **_DELTA | {"linear_num_key_heads": 4}, **_DEEP),
    "qwen3_next": lambda: hf.Qwen3NextConfig(layer_types=_LINEAR, head_dim=16, **_DELTA, **_SHARED, **_DEEP),
    "qwen3_5": lambda: hf.Qwen3_5TextConfig(layer_types=_LINEAR, head_dim=16, **_DELTA, **_DEEP),
    "qwen3_5_moe": lambda: hf.Qwen3_5MoeTextConfig(layer_types=_LINEAR, head_dim=16, **_DELTA, **_SHARED, **_DEEP),
    "zamba": lambda: hf.ZambaConfig(
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        attention_hidden_size=64,
        attention_head_dim=16,
        mamba_d_state=8,
        mamba_dt_rank=4,
        **_DEEP | {"num_key_value_heads": 4},
    ),
    "zamba2": lambda: hf.Zamba2Config(
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        mamba_d_state=8,
        n_mamba_heads=4,
        chunk_size=8,
        adapter_rank=8,
        **_DEEP | {"num_key_value_heads": 4},
    ),
    "mamba": lambda: hf.MambaConfig(state_size=8, num_hidden_layers=3, time_step_rank=4, **_SIZE),
    "mamba2": lambda: hf.Mamba2Config(
        state_size=8, num_hidden_layers=3, num_heads=4, head_dim=16, n_groups=2, chunk_size=8, **_SIZE
    ),
    "falcon_mamba": lambda: hf.FalconMambaConfig(state_size=8, num_hidden_layers=3, time_step_rank=4, **_SIZE),
    "zaya": lambda: hf.ZayaConfig(head_dim=16, router_hidden_size=16, **_MOE | {"num_experts_per_tok": 1}, **_DEEP),
    "lfm3": lambda: hf.Lfm3Config(
        head_dim=8, sliding_window=8, layer_types=["conv", "full_attention", "conv", "sliding_attention"], **_DEEP
    ),
    "bailing_hybrid": lambda: hf.BailingHybridConfig(
        moe_intermediate_size=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        head_dim=8,
        layer_group_size=2,
        **_LATENT,
        **_DEEP | {"num_key_value_heads": 4},
    ),
    "minimax": lambda: hf.MiniMaxConfig(layer_types=_LINEAR, num_local_experts=4, block_size=8, **_DEEP),
    "recurrent_gemma": lambda: hf.RecurrentGemmaConfig(lru_width=32, attention_window_size=8, **_DEEP),
}

PROMPTS = [torch.arange(3, 3 + n).mul(7 * n + 1).remainder(97).add(3).tolist() for n in (7, 23, 4, 14, 9, 1, 23)]
TOKENS = 8
PLACEMENTS: tuple[dict[str, Any], ...] = (
    {"weights": "disk=100%", "rows": 3, "sweep_tokens": 30, "batch_tokens": 12},
)


def _made(config: Any, folder: Path) -> Any:
    """A model whose random weights are large enough that its tokens depend on its past."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config = hf.GenerationConfig()
    model.save_pretrained(folder)
    return model


def _generated(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_generate(family: str, tmp_path: Path) -> None:
    model = _made(FAMILIES[family](), tmp_path)
    expected = [_generated(model, prompt) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in expected}) == len(set(map(tuple, PROMPTS)))
    for placement in PLACEMENTS:
        with LLM(str(tmp_path), dtype="float32", page_bytes=3000, unchecked=True, **placement) as llm:
            outputs = llm.generate(
                [{"prompt_token_ids": prompt} for prompt in PROMPTS],
                SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=0),
            )
        assert [out.outputs[0].token_ids for out in outputs] == expected
