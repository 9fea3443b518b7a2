"""How a checkpoint's matrices are quantised, as its config says."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

Method = Literal["fp8", "mxfp4"]
READ: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, slots=True)
class Quantized:
    """block: rows and columns of a matrix in fp8 that share a scale; None where its scales alone tell.

    kept: patterns of modules that are not quantised; None where the config names none.
    """

    method: Method
    block: tuple[int, int] | None = None
    kept: tuple[str, ...] | None = None

    @classmethod
    def written(cls, quantization: Any) -> "Quantized | None":
        """What a config's ``quantization_config`` says; None where that is not read."""
        if not isinstance(quantization, dict):
            return None
        method, block = quantization.get("quant_method"), quantization.get("weight_block_size")
        listed = quantization.get("modules_to_not_convert", quantization.get("ignored_layers"))
        kept = tuple(map(str, listed)) if isinstance(listed, list | tuple) else None
        if method == "mxfp4":
            return cls("mxfp4", None, kept)
        if method != "fp8" or quantization.get("expert_dtype", "fp8") != "fp8":
            return None
        if block is None:
            return cls("fp8", None, kept)
        sizes = isinstance(block, list | tuple) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)
        return cls("fp8", (block[0], block[1]), kept) if sizes else None
