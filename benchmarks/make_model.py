"""Write a random-weight checkpoint of a known shape: make_model.py SHAPE OUT_DIR [--layers N].

Tensors are drawn and written one at a time, so memory stays at the largest tensor (under 2 GiB) whatever the model's
size. Keys are those of the original checkpoints (each expert on its own), in sorted order within a file, as hubs have.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

FILE_BYTES = 2 * 10**9

Shapes = dict[str, tuple[int, ...]]

SHAPES = {
    # 5.9 GB, the widths of Llama 3.2 3B with a small vocabulary
    "llama3b": {
        "model_type": "llama",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    # 2.5 GB, the shape of Llama 3.2 1B with its 128k vocabulary
    "llama1b": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    # 3.0 GB, a third of it two untied 128k vocabularies
    "llama1b-128k": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
    # 8.8 GB: six layers with the widths of Qwen3-30B-A3B; a layer is 1.2 GiB, so two do not fit 3 GiB beside the rest
    "qwen3moe": {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "num_hidden_layers": 6,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
    },
    # 10.5 GB: two layers with the widths of Qwen3-235B-A22B; one layer is 4.6 GiB, more than the whole limit
    "qwen3moe-wide": {
        "model_type": "qwen3_moe",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "num_hidden_layers": 2,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 32768,
        "tie_word_embeddings": False,
    },
    # 10.1 GB: twenty layers with the widths of gpt-oss-20b and a small vocabulary, experts in MXFP4
    "gptoss": {
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 20,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "sliding_window": 128,
        "vocab_size": 49152,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "quantization_config": {"quant_method": "mxfp4"},
    },
}
COMMON = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
}
BLOCK = 32  # weights that share a scale in MXFP4: half as many bytes of codes
EXPONENTS = range(119, 122)  # of these scales: weights of about initializer_range


def config_of(shape: str, layers: int | None = None) -> dict:
    """The config.json of a shape, with another number of layers if given."""
    config: dict = COMMON | SHAPES[shape]
    config["architectures"] = [ARCHITECTURES[config["model_type"]]]
    if layers is not None:
        config["num_hidden_layers"] = layers
    return config


def mlp_shapes(prefix: str, hidden: int, inner: int) -> Shapes:
    return {
        f"{prefix}.gate_proj.weight": (inner, hidden),
        f"{prefix}.up_proj.weight": (inner, hidden),
        f"{prefix}.down_proj.weight": (hidden, inner),
    }


def gpt_oss_shapes(prefix: str, config: dict, matrices: Shapes) -> Shapes:
    """What such a layer has besides: biases, sinks, and stacks of experts in MXFP4."""
    experts, hidden, inner = config["num_local_experts"], config["hidden_size"], config["intermediate_size"]
    shapes: Shapes = {
        name.replace(".weight", ".bias"): shape[:1] for name, shape in matrices.items() if len(shape) == 2
    }
    shapes[f"{prefix}.self_attn.sinks"] = (config["num_attention_heads"],)
    shapes |= {f"{prefix}.mlp.router.weight": (experts, hidden), f"{prefix}.mlp.router.bias": (experts,)}
    for name, out, columns in (("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)):
        stack = f"{prefix}.mlp.experts.{name}"
        shapes[f"{stack}_bias"] = (experts, out)
        shapes[f"{stack}_blocks"] = (experts, out, columns // BLOCK, BLOCK // 2)
        shapes[f"{stack}_scales"] = (experts, out, columns // BLOCK)
    return shapes


def layer_shapes(config: dict, layer: int) -> Shapes:
    """Tensors of one decoder layer by key; the experts each on their own."""
    hidden, head = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    prefix = f"model.layers.{layer}"
    shapes: Shapes = {
        f"{prefix}.input_layernorm.weight": (hidden,),
        f"{prefix}.post_attention_layernorm.weight": (hidden,),
        f"{prefix}.self_attn.q_proj.weight": (queries, hidden),
        f"{prefix}.self_attn.k_proj.weight": (keys, hidden),
        f"{prefix}.self_attn.v_proj.weight": (keys, hidden),
        f"{prefix}.self_attn.o_proj.weight": (hidden, queries),
    }
    if config["model_type"] == "llama":
        return shapes | mlp_shapes(f"{prefix}.mlp", hidden, config["intermediate_size"])
    if config["model_type"] == "gpt_oss":
        return shapes | gpt_oss_shapes(prefix, config, shapes)
    shapes |= {f"{prefix}.self_attn.{name}_norm.weight": (head,) for name in "qk"}
    shapes[f"{prefix}.mlp.gate.weight"] = (config["num_experts"], hidden)
    for expert in range(config["num_experts"]):
        shapes |= mlp_shapes(f"{prefix}.mlp.experts.{expert}", hidden, config["moe_intermediate_size"])
    return shapes


def model_shapes(config: dict) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the checkpoint, in the order in which files are filled."""
    vocabulary = (config["vocab_size"], config["hidden_size"])
    yield "model.embed_tokens.weight", vocabulary
    for layer in range(config["num_hidden_layers"]):
        yield from layer_shapes(config, layer).items()
    yield "model.norm.weight", (config["hidden_size"],)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", vocabulary


def files_of(shapes: Iterator[tuple[str, tuple[int, ...]]]) -> list[Shapes]:
    """Tensors cut into files of at most FILE_BYTES (a larger tensor has a file of its own)."""
    files: list[Shapes] = [{}]
    filled = 0
    for key, shape in shapes:
        size = bytes_of(key, shape)
        if files[-1] and filled + size > FILE_BYTES:
            files.append({})
            filled = 0
        files[-1][key] = shape
        filled += size
    return files


def is_bytes(key: str) -> bool:
    """Whether a tensor is one of MXFP4's two; the others are bf16."""
    return key.endswith(("_blocks", "_scales"))


def bytes_of(key: str, shape: tuple[int, ...]) -> int:
    """Of a tensor."""
    return (1 if is_bytes(key) else 2) * math.prod(shape)


def draw(key: str, shape: tuple[int, ...], sigma: float, random: torch.Generator) -> torch.Tensor:
    """Random codes and scales; in bf16 ones for a norm, zeros for a bias, normal with deviation sigma for a matrix."""
    if is_bytes(key):
        low, high = (0, 256) if key.endswith("_blocks") else (EXPONENTS.start, EXPONENTS.stop)
        return torch.randint(low, high, shape, dtype=torch.uint8, generator=random)
    if len(shape) == 1:
        return (torch.ones if "norm" in key else torch.zeros)(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, sigma, generator=random)


def write_file(path: Path, shapes: Shapes, sigma: float, random: torch.Generator) -> None:
    """One safetensors file, a tensor at a time: header length, JSON header padded to 8 bytes, then the bytes."""
    header: dict = {"__metadata__": {"format": "pt"}}
    end = 0
    for key in sorted(shapes):
        start, end = end, end + bytes_of(key, shapes[key])
        header[key] = {
            "dtype": "U8" if is_bytes(key) else "BF16",
            "shape": list(shapes[key]),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in sorted(shapes):
            draw(key, shapes[key], sigma, random).view(torch.uint8).numpy().tofile(file)


def make_model(shape: str, out: Path, layers: int | None = None) -> None:
    """Write the checkpoint under another name first, so that a directory called `out` is always whole."""
    config = config_of(shape, layers)
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    (part / "config.json").write_text(json.dumps(config, indent=2))
    (part / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    random = torch.Generator().manual_seed(0)
    files = files_of(model_shapes(config))
    place: dict[str, str] = {}
    for i, shapes in enumerate(files):
        name = f"model-{i + 1:05}-of-{len(files):05}.safetensors"
        write_file(part / name, shapes, config["initializer_range"], random)
        place |= dict.fromkeys(shapes, name)
        print(f"{name}: {len(shapes)} tensors", file=sys.stderr)
    total = sum((part / name).stat().st_size for name in set(place.values()))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(place.items()))}
    (part / "model.safetensors.index.json").write_text(json.dumps(index))
    part.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path, help="directory to create")
    parser.add_argument("--layers", type=int, help="another number of decoder layers (a short smoke model)")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.exit(2, f"make_model.py: {arguments.out} is there already; remove it or name another directory\n")
    make_model(arguments.shape, arguments.out, arguments.layers)


if __name__ == "__main__":
    main()
