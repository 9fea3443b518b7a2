"""Tiny random models of many families, each with what makes its family special cut down to a few tokens."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.models.granitemoe import modeling_granitemoe

VOCABULARY = 100
WIDTHS = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": VOCABULARY}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
PLAIN = {**WIDTHS, **IDS, "intermediate_size": 96}
GQA = {**PLAIN, "num_key_value_heads": 2}
ALTERNATING = ["sliding_attention", "full_attention"]
SWITCH = 20  # tokens at which longrope and dynamic rope change their frequencies; prompts lie on both sides


def _mla(config: Any, **more: Any) -> Any:
    ranks = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
    return config(**{**GQA, **ranks, "num_key_value_heads": 4, "moe_intermediate_size": 32, **more})


def _longrope(config: Any, **more: Any) -> Any:
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0 + i for i in range(8)]}
    return config(
        max_position_embeddings=64,
        original_max_position_embeddings=SWITCH,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "original_max_position_embeddings": SWITCH,
            **factors,
        },
        **{**GQA, **more},
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**GQA),
    "llama-dynamic-rope": lambda: hf.LlamaConfig(
        max_position_embeddings=SWITCH,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        **GQA,
    ),
    "llama4-chunked": lambda: hf.Llama4TextConfig(
        head_dim=16,
        intermediate_size_mlp=96,
        num_local_experts=4,
        attention_chunk_size=8,
        **{**GQA, "num_hidden_layers": 4},
    ),
    "mistral-window": lambda: hf.MistralConfig(sliding_window=8, **GQA),
    "mixtral": lambda: hf.MixtralConfig(num_local_experts=4, num_experts_per_tok=2, sliding_window=None, **GQA),
    "opt": lambda: hf.OPTConfig(ffn_dim=96, word_embed_proj_dim=64, **WIDTHS, **IDS),
    "gpt2": lambda: hf.GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=VOCABULARY, **IDS),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**PLAIN),
    "gpt_oss-sinks": lambda: hf.GptOssConfig(
        head_dim=16,
        sliding_window=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=[*ALTERNATING, "full_attention"],
        **GQA,
    ),
    "phi3": lambda: hf.Phi3Config(**GQA),
    "phi3-longrope": lambda: _longrope(hf.Phi3Config),
    "gemma2-softcap": lambda: hf.Gemma2Config(head_dim=16, sliding_window=8, attn_logit_softcapping=5.0, **GQA),
    "gemma3": lambda: hf.Gemma3TextConfig(
        head_dim=16, sliding_window=8, layer_types=[*ALTERNATING, "full_attention"], **GQA
    ),
    "gemma4-shared-kv": lambda: hf.Gemma4TextConfig(
        head_dim=16,
        global_head_dim=32,
        sliding_window=8,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=16,
        layer_types=ALTERNATING * 2,
        **{**GQA, "num_hidden_layers": 4},
    ),
    "qwen2": lambda: hf.Qwen2Config(**GQA),
    "qwen3": lambda: hf.Qwen3Config(head_dim=16, **GQA),
    "qwen2_moe": lambda: hf.Qwen2MoeConfig(
        moe_intermediate_size=32, shared_expert_intermediate_size=32, num_experts=4, num_experts_per_tok=2, **GQA
    ),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(
        moe_intermediate_size=32, num_experts=8, num_experts_per_tok=2, head_dim=16, **GQA
    ),
    "deepseek_v2-mla": lambda: _mla(
        hf.DeepseekV2Config, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1
    ),
    "deepseek_v3-mla": lambda: _mla(
        hf.DeepseekV3Config, n_routed_experts=8, n_group=2, topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1
    ),
    "glm4": lambda: hf.Glm4Config(head_dim=16, **GQA),
    "olmo2": lambda: hf.Olmo2Config(**GQA),
    "olmoe": lambda: hf.OlmoeConfig(num_experts=4, num_experts_per_tok=2, **GQA),
    "cohere2": lambda: hf.Cohere2Config(sliding_window=8, layer_types=[*ALTERNATING, "full_attention"], **GQA),
    "granitemoe": lambda: hf.GraniteMoeConfig(num_local_experts=4, num_experts_per_tok=2, **GQA),
    "smollm3-nope": lambda: hf.SmolLM3Config(**{**GQA, "num_hidden_layers": 4}),
    "starcoder2": lambda: hf.Starcoder2Config(sliding_window=8, **GQA),
    "stablelm": lambda: hf.StableLmConfig(**GQA),
}


def refused(name: str) -> str | None:
    """Why the installed transformers has no such family that could run, or None."""
    if name == "granitemoe" and not hasattr(modeling_granitemoe, "GraniteMoeExperts"):
        return "before it was given experts, granitemoe sorted tokens by values that no dry run has"
    return None


def build(name: str) -> Any:
    """A model of the family with weights large enough that its output depends on all of its input; always the same."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[name](), attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.08)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)  # biases, sinks, norms: not all alike
    model.generation_config = GenerationConfig()
    return model
