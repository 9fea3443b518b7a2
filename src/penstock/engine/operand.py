"""Weights as compiled kernels take them: an array, and a tuple whose length tells how its bytes are packed."""

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch

from penstock.compiled.vectors import STORED
from penstock.quant.forms import number
from penstock.quant.packed import Packed


@dataclass(frozen=True, slots=True)
class Operand:
    """Rows of weights. row_bytes: of one, without what may lie between rows. group: elements that are read together.

    form: as ``compiled.codes.layout`` takes it; its length is compiled into a kernel, and means nothing for dtypes.
    """

    array: npt.NDArray[Any]
    row_bytes: int
    group: int
    form: tuple[int, ...]

    @classmethod
    def of(cls, weight: torch.Tensor | Packed) -> "Operand":
        """Weights (out, in) on the cpu; no bytes are copied."""
        if isinstance(weight, Packed):
            data = weight.data.numpy()
            return cls(data, data.shape[1], weight.form.group, (0,) * (number(weight.form) + 1))
        array = weight.view(STORED[weight.dtype]).numpy()
        return cls(array, array.shape[1] * array.itemsize, 1, (0,))

    @property
    def kind(self) -> str:
        """numba's name of its elements."""
        return self.array.dtype.name
