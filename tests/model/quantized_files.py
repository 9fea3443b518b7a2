"""Checkpoints in fp8 and MXFP4 as hubs have them, made of a model in 16 bits."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Mxfp4Config

from penstock.quant.mxfp4 import ELEMENTS

Tensors = dict[str, torch.Tensor]
BLOCK = 128, 128  # of fp8
KEPT = ("embed", "lm_head", "norm", "mlp.gate.")  # stay in 16 bits, as in published checkpoints


def write(model: Any, path: Path, quantization: Mapping[str, Any], change: Callable[[Tensors], Tensors]) -> None:
    """Save a model, its tensors changed and its config telling how."""
    model.save_pretrained(path)
    tensors = {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for file in path.glob("*.safetensors*"):
        file.unlink()
    save_file(change(tensors), path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": dict(quantization)}))


def write_fp8(model: Any, path: Path, block: tuple[int, int] | None = BLOCK, scales: Any = torch.float32) -> None:
    """Every matrix but those KEPT in fp8, with a scale for each block, or one for all of it."""

    def change(tensors: Tensors) -> Tensors:
        made: Tensors = {}
        for name, tensor in tensors.items():
            if tensor.dim() < 2 or any(part in name for part in KEPT):
                made[name] = tensor
            else:
                made[name], made[name + "_scale_inv"] = fp8_of(tensor, block, scales)
        return made

    written = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block and list(block)}
    write(model, path, written, change)


def fp8_of(matrix: torch.Tensor, block: tuple[int, int] | None, scales: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of a matrix (rows, columns); blocks at its ends may be smaller."""
    high, wide = block or matrix.shape
    grid = torch.stack(
        [torch.stack([part.abs().max() for part in band.split(wide, 1)]) for band in matrix.float().split(high, 0)]
    )
    kept = (grid / 448).to(scales)
    codes = (matrix.float() / spread(kept.float(), matrix, (high, wide))).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes, kept if block else kept.reshape(())


def spread(grid: torch.Tensor, matrix: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """The scale of each element of a matrix."""
    whole = grid.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return whole[: matrix.shape[0], : matrix.shape[1]]


def write_mxfp4(model: Any, path: Path) -> None:
    """The stacks of experts in MXFP4, everything else in 16 bits, as gpt-oss is published."""

    def change(tensors: Tensors) -> Tensors:
        made: Tensors = {}
        for name, tensor in tensors.items():
            if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                made[name + "_blocks"], made[name + "_scales"] = mxfp4_of(tensor.transpose(1, 2))
            else:
                made[name] = tensor
        return made

    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    write(model, path, {"quant_method": "mxfp4", "modules_to_not_convert": kept}, change)


def mxfp4_of(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks (…, columns / 32, 16) and scales of values (…, columns)."""
    groups = values.float().unflatten(-1, (-1, 32))
    exponents = torch.floor(torch.log2(groups.abs().amax(-1).clamp(min=1e-30))) - 2  # 6 · 2^e is not far above
    scaled = groups / exponents.exp2()[..., None]
    codes = (scaled[..., None] - torch.tensor(ELEMENTS)).abs().argmin(-1).to(torch.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4, (exponents + 127).to(torch.uint8)


def dequantized(path: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    """The model that transformers makes of a checkpoint, without the kernels that it would need otherwise."""
    written = json.loads((path / "config.json").read_text())["quantization_config"]
    settings = Mxfp4Config if written["quant_method"] == "mxfp4" else FineGrainedFP8Config
    # it asks for a package that it does not use here
    with patch("transformers.quantizers.quantizer_finegrained_fp8.is_accelerate_available", return_value=True):
        config = settings.from_dict({**written, "dequantize": True})
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, quantization_config=config)
