"""Matrices in a few bits an element, on any tier: the bytes as they are stored, and how to make numbers of them."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from penstock.cuda.trial import works
from penstock.quant.elements import elements
from penstock.quant.forms import Form


@dataclass(frozen=True, slots=True)
class Packed:
    """An array (…, rows, columns), packed. data: uint8 (…, rows, ``form.row_bytes(columns)``) on any device."""

    form: Form
    columns: int
    data: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array that it stands for."""
        return (*self.data.shape[:-1], self.columns)

    @property
    def device(self) -> torch.device:
        """Where its bytes are."""
        return self.data.device

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: Any) -> "Packed":
        """The part that an index of the first dimension chooses."""
        return replace(self, data=self.data[rows])

    def wide(self, dtype: torch.dtype) -> torch.Tensor:
        """All elements, in a dtype; exact in float32."""
        made = torch.empty(self.shape, dtype=dtype, device=self.device)
        self.write(made)
        return made

    def write(self, target: torch.Tensor) -> None:
        """Write all elements to a contiguous tensor of its shape, on its device, rounded to the target's dtype."""
        data, flat = self.data.reshape(-1, self.data.shape[-1]), target.view(-1, self.columns)
        if self.device.type == "cpu":
            from penstock.quant.unpacking import unpack  # imports numba: only where something is packed

            unpack(data, self.form, flat)
        elif works(self.form, target.dtype, self.device):
            from penstock.cuda.unpacking import unpack as unpack_on_cuda  # imports triton: only where it is there

            unpack_on_cuda(data, self.form, flat)
        else:
            flat.copy_(elements(self.form, data, self.columns))
