"""Small GGUF files of random tensors."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from tests.quant.blocks import blocks
from transformers import PreTrainedConfig

FIELDS = {  # of a config, as GGUF calls them
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "head_dim": "attention.key_length",
    "vocab_size": "vocab_size",
}


def write(
    path: Path,
    architecture: str,
    config: PreTrainedConfig,
    shapes: dict[str, tuple[int, ...]],
    kind: str | Callable[[str], str] = "F32",
    scale: float = 1.0,
) -> Path:
    """A GGUF file of random tensors about as large as ``scale``: vectors in float32, matrices in ``kind``, or its."""
    writer = gguf.GGUFWriter(path, architecture)
    for ours, theirs in FIELDS.items():
        if isinstance(said := getattr(config, ours, None), int):
            writer.add_uint32(f"{architecture}.{theirs}", said)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", getattr(config, "rms_norm_eps", 1e-6))
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "déf"])
    writer.add_array("some.numbers", [1, 2, 3])
    draw = np.random.default_rng(0)
    for seed, (name, shape) in enumerate(shapes.items()):
        form = kind if isinstance(kind, str) else kind(name)
        if len(shape) == 1 or form == "F32":
            writer.add_tensor(name, draw.standard_normal(shape).astype(np.float32) * scale + (len(shape) == 1))
        else:
            rows = blocks(form, int(np.prod(shape[:-1])), shape[-1], scale, seed)
            writer.add_tensor(name, rows.reshape(*shape[:-1], -1), raw_dtype=gguf.GGMLQuantizationType[form])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_shapes(
    hidden: int = 64, intermediate: int = 128, vocabulary: int = 96, layers: int = 2
) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama with half as many key heads as heads, and an LM head of its own."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, hidden), "output_norm.weight": (hidden,)}
    shapes["output.weight"] = (vocabulary, hidden)
    for layer in (f"blk.{index}" for index in range(layers)):
        shapes |= {
            f"{layer}.attn_norm.weight": (hidden,),
            f"{layer}.attn_q.weight": (hidden, hidden),
            f"{layer}.attn_k.weight": (hidden // 2, hidden),
            f"{layer}.attn_v.weight": (hidden // 2, hidden),
            f"{layer}.attn_output.weight": (hidden, hidden),
            f"{layer}.ffn_norm.weight": (hidden,),
            f"{layer}.ffn_gate.weight": (intermediate, hidden),
            f"{layer}.ffn_up.weight": (intermediate, hidden),
            f"{layer}.ffn_down.weight": (hidden, intermediate),
        }
    return shapes
