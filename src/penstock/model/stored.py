"""The tensors of a safetensors checkpoint as sources of parameters, scales put to what they scale."""

from collections.abc import Mapping

from penstock.errors import UserError
from penstock.model.fp8_parameter import CODES, Fp8Parameter, Fp8Tensor, Fp8Tensors
from penstock.model.mxfp4_parameter import Mxfp4Parameter
from penstock.model.parameter_source import ParameterSource
from penstock.model.quantized import Quantized
from penstock.model.safetensors_index import StoredTensor

FP8_SCALES, MXFP4_BLOCKS, MXFP4_SCALES = "_scale_inv", "_blocks", "_scales"  # ends of names, as transformers has them


def stored_sources(
    tensors: Mapping[str, StoredTensor], quantized: Quantized | None = None, dtype: str = "bfloat16"
) -> dict[str, ParameterSource]:
    """What each tensor of a checkpoint holds, by the name of its values.

    quantized: how some are stored, as the config says. dtype: what these are rounded to. Raises UserError for codes
    without scales.
    """
    if quantized is None:
        return {name: tensor.raw for name, tensor in tensors.items()}
    return _fp8(tensors, quantized, dtype) if quantized.method == "fp8" else _mxfp4(tensors, dtype)


def _fp8(tensors: Mapping[str, StoredTensor], quantized: Quantized, dtype: str) -> dict[str, ParameterSource]:
    scaled: dict[str, Fp8Tensor] = {}
    for name, codes in tensors.items():
        scales = tensors.get(name + FP8_SCALES)
        if scales is None and codes.dtype != CODES:
            continue
        if codes.dtype != CODES or len(codes.shape) < 2:
            raise UserError(
                f"The checkpoint holds {name} as {codes.dtype} of shape {list(codes.shape)} with scales; only matrices "
                f"in {CODES} are read so."
            )
        if scales is None:
            raise UserError(f"The checkpoint holds {name} in fp8, and no {name + FP8_SCALES} with its scales.")
        scaled[name] = Fp8Tensor.of(codes, scales, quantized.block)
    every = Fp8Tensors(scaled.values())
    used = {name + FP8_SCALES for name in scaled}
    return {
        name: Fp8Parameter(tensor.raw, every, dtype) if name in scaled else tensor.raw
        for name, tensor in tensors.items()
        if name not in used
    }


def _mxfp4(tensors: Mapping[str, StoredTensor], dtype: str) -> dict[str, ParameterSource]:
    made: dict[str, ParameterSource] = {}
    for name, tensor in tensors.items():
        values = name.removesuffix(MXFP4_BLOCKS)
        scales = tensors.get(values + MXFP4_SCALES)
        if values != name and scales is not None:
            made[values] = Mxfp4Parameter.of(tensor, scales, dtype)
        else:
            made[name] = tensor.raw  # scales too: no parameter is called so
    return made
