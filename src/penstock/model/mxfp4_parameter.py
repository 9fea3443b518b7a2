"""Stacks of experts that a checkpoint stores in MXFP4: blocks of codes, and scales in a tensor of their own."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from penstock.errors import UserError
from penstock.model.parameter_source import Raw
from penstock.model.safetensors_index import StoredTensor
from penstock.quant.mxfp4 import Mxfp4
from penstock.quant.packed import Packed
from penstock.quant.rows import BLOCK

_FORM = Mxfp4()


@dataclass(frozen=True)
class Mxfp4Parameter:
    """A parameter (experts, in, out), as its module takes it; stored the other way round, (experts, out, in).

    name: of its blocks. blocks: bytes (experts, out, in / 32, 16). scales: bytes (experts, out, in / 32). dtype: what
    elements are rounded to, which changes nothing but in float16.
    """

    name: str
    blocks: Raw
    scales: Raw
    dtype: str

    turned = True  # rows of the form lie along in

    @classmethod
    def of(cls, blocks: StoredTensor, scales: StoredTensor, dtype: str) -> "Mxfp4Parameter":
        """UserError where the two tensors do not belong together."""
        bytes_alone = {blocks.dtype, scales.dtype} == {"uint8"}
        if not bytes_alone or len(blocks.shape) != 4 or blocks.shape != (*scales.shape, BLOCK // 2):
            raise UserError(
                f"{blocks.name} of shape {list(blocks.shape)} and {scales.name} of shape {list(scales.shape)} are no "
                "blocks of MXFP4."
            )
        return cls(blocks.name, blocks.raw, scales.raw, dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        experts, out, blocks, _ = self.blocks.shape
        return experts, blocks * BLOCK, out

    @property
    def form(self) -> Mxfp4 | None:
        """The format that its rows run in; None where its dtype does not hold all of its elements."""
        return None if self.dtype == "float16" else _FORM

    def packed(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Experts [start, stop) as they run, uint8 (stop - start, out, bytes of a row).

        Raises UserError where a scale is no number.
        """
        from penstock.quant.rearranging import pack_mxfp4  # imports numba: only where something is packed

        try:
            return pack_mxfp4(self.blocks.load(start, stop).numpy(), self.scales.load(start, stop).numpy())
        except ValueError as error:
            raise UserError(f"{self.name} holds {error}. Download it again.") from error

    def load(self, start: int | None = None, stop: int | None = None) -> torch.Tensor:
        """Experts [start, stop), shape (stop - start, in, out)."""
        first, last, _ = slice(start, stop).indices(self.shape[0])
        rows = Packed(_FORM, self.shape[1], torch.from_numpy(self.packed(first, max(first, last))))
        return rows.wide(getattr(torch, self.dtype)).transpose(1, 2).contiguous()
