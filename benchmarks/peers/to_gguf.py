"""Convert a checkpoint as make_model.py writes (Llama, Qwen3-MoE) to GGUF: to_gguf.py MODEL OUT.gguf [TYPE].

One tensor at a time, so memory stays at the largest tensor (a layer's stacked experts count as one).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors import safe_open

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


class Checkpoint:
    """Tensors of a directory of safetensors by key."""

    def __init__(self, directory: Path) -> None:
        self.config: dict = json.loads((directory / "config.json").read_text())
        self.files = {}
        for path in sorted(directory.glob("*.safetensors")):
            file = safe_open(path, "pt")
            self.files |= dict.fromkeys(file.keys(), file)

    def tensor(self, key: str) -> torch.Tensor:
        return self.files[key].get_tensor(key)

    def shape(self, key: str) -> list[int]:
        return self.files[key].get_slice(key).get_shape()


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q and k in GGUF's order for Llama: rotated pairs next to each other instead of half a head apart."""
    return weight.view(heads, 2, weight.shape[0] // heads // 2, -1).transpose(1, 2).reshape(weight.shape)


def encoded(tensor: torch.Tensor, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """The tensor's GGUF bytes as an array."""
    if kind == gguf.GGMLQuantizationType.F32:
        return tensor.float().numpy()
    if kind == gguf.GGMLQuantizationType.BF16:
        return tensor.contiguous().view(torch.uint8).numpy()
    if kind == gguf.GGMLQuantizationType.F16:
        return tensor.half().numpy()
    return gguf.quants.quantize(tensor.float().numpy(), kind)


def entries(checkpoint: Checkpoint) -> dict[str, tuple[list[int], Callable[[], torch.Tensor]]]:
    """GGUF tensors in order: name to shape and loader."""
    config = checkpoint.config
    llama = config["model_type"] == "llama"
    heads = {"self_attn.q_proj": config["num_attention_heads"], "self_attn.k_proj": config["num_key_value_heads"]}

    def load(key: str, module: str) -> Callable[[], torch.Tensor]:
        if llama and module in heads:
            return lambda: permuted(checkpoint.tensor(key), heads[module])
        return lambda: checkpoint.tensor(key)

    def stack(keys: list[str]) -> Callable[[], torch.Tensor]:
        return lambda: torch.stack([checkpoint.tensor(key) for key in keys])

    found: dict[str, tuple[list[int], Callable[[], torch.Tensor]]] = {}
    for key in checkpoint.files:
        module = key.removesuffix(".weight")
        if module in TOP:
            found[f"{TOP[module]}.weight"] = checkpoint.shape(key), load(key, module)
        elif ".experts." not in module:
            _, _, layer, rest = module.split(".", 3)
            found[f"blk.{layer}.{NAMES[rest]}.weight"] = checkpoint.shape(key), load(key, rest)
    if not llama:
        experts = config["num_experts"]
        for layer in range(config["num_hidden_layers"]):
            for part in ("gate", "up", "down"):
                keys = [f"model.layers.{layer}.mlp.experts.{e}.{part}_proj.weight" for e in range(experts)]
                found[f"blk.{layer}.ffn_{part}_exps.weight"] = [experts, *checkpoint.shape(keys[0])], stack(keys)
    return found


def write_settings(writer: gguf.GGUFWriter, config: dict) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    if "num_experts" in config:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{i}>" for i in range(config["vocab_size"])])
    writer.add_token_scores([0.0] * config["vocab_size"])
    writer.add_token_types([1] * config["vocab_size"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def convert(directory: Path, out: Path, qtype: gguf.GGMLQuantizationType) -> None:
    """Write the GGUF under another name first, so that a file called `out` is always whole."""
    checkpoint = Checkpoint(directory)
    part = out.with_name(out.name + ".part")
    writer = gguf.GGUFWriter(part, {"llama": "llama", "qwen3_moe": "qwen3moe"}[checkpoint.config["model_type"]])
    write_settings(writer, checkpoint.config)
    wanted = entries(checkpoint)
    # llama.cpp computes vectors and the router in float32 only
    kinds = {
        name: gguf.GGMLQuantizationType.F32 if len(shape) == 1 or "ffn_gate_inp" in name else qtype
        for name, (shape, _) in wanted.items()
    }
    for name, (shape, _) in wanted.items():
        stored = gguf.quant_shape_to_byte_shape(shape, kinds[name])
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), math.prod(stored), raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, (_, load) in wanted.items():
        writer.write_tensor_data(encoded(load(), kinds[name]))
    writer.close()
    part.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("type", nargs="?", default="bf16", choices=["bf16", "f16", "q8_0", "q4_0"])
    arguments = parser.parse_args()
    convert(arguments.model, arguments.out, gguf.GGMLQuantizationType[arguments.type.upper()])


if __name__ == "__main__":
    main()
