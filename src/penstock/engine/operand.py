"""Weights as compiled kernels take them: an array, and a tuple whose length tells how its bytes are packed."""

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch

from penstock.compiled.vectors import STORED
from penstock.quant.forms import number
from penstock.quant.packed import Packed

_KINDS = {dtype: str(stored).removeprefix("torch.") for dtype, stored in STORED.items()}


@dataclass(frozen=True, slots=True)
class Operand:
    """Rows of weights. kind: numba's name of their elements. row_bytes: of a row, without what may lie between them.

    record: how a run of elements lies (``quant.rows``). group: elements that are read together. form: as
    ``compiled.codes.layout`` takes it; its length is compiled into a kernel, and means nothing for dtypes.
    """

    array: npt.NDArray[Any]
    kind: str
    record: str
    row_bytes: int
    group: int
    form: tuple[int, ...]

    @classmethod
    def of(cls, weight: torch.Tensor | Packed) -> "Operand":
        """Weights (out, in) on the cpu; no bytes are copied."""
        if isinstance(weight, Packed):
            data, numbered = weight.data.numpy(), (0,) * (number(weight.form) + 1)
            return cls(data, "uint8", weight.form.record, data.shape[1], weight.form.group, numbered)
        array = stored(weight)
        return cls(array, kind(weight), kind(weight), array.shape[1] * array.itemsize, 1, (0,))


def kind(tensor: torch.Tensor) -> str:
    """numba's name of what a tensor's elements travel as."""
    return _KINDS[tensor.dtype]


def stored(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """A tensor's elements as they travel; no bytes are copied."""
    return (tensor if tensor.dtype == torch.float32 else tensor.view(STORED[tensor.dtype])).numpy()
