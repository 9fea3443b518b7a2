"""Parameters that a checkpoint stores in fp8, with scales in tensors of their own."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np
import numpy.typing as npt
import torch

from penstock.errors import UserError
from penstock.model.parameter_source import Raw, Run, read_runs
from penstock.model.safetensors_index import StoredTensor
from penstock.model.traced_bytes import NotBytesInOrder
from penstock.quant.fp8 import Fp8

CODES = "float8_e4m3fn"
_SCALES = ("float32", "bfloat16", "float16", "float8_e8m0fnu", "uint8")
_FORM = Fp8()


@dataclass(frozen=True)
class Fp8Tensor:
    """A stored matrix, or a stack of them, and the scales of its blocks of ``block`` rows and columns.

    scales: (matrices · rows of blocks, columns of blocks).
    """

    codes: StoredTensor
    scales: Raw
    block: tuple[int, int]

    @classmethod
    def of(cls, codes: StoredTensor, scales: StoredTensor, block: tuple[int, int] | None) -> "Fp8Tensor":
        """A tensor of two dimensions or more.

        block: what the config says. Where there are more scales or fewer, a matrix is divided evenly, as transformers
        does it; UserError where that does not come out.
        """
        rows, columns = codes.shape[-2:]
        down, across = scales.shape[-2:] if len(scales.shape) > 1 else (1, 1)
        known = scales.dtype in _SCALES and 0 < prod(scales.shape) == prod(codes.shape[:-2]) * down * across
        if block is None or (-(-rows // block[0]), -(-columns // block[1])) != (down, across):
            known = known and rows % down == columns % across == 0
            block = rows // max(1, down), columns // max(1, across)
        if not known:
            raise UserError(
                f"{scales.name} holds {scales.dtype} of shape {list(scales.shape)}, which are no scales of "
                f"{list(codes.shape)} in fp8."
            )
        if across == 1:
            block = block[0], -(-columns // _FORM.group) * _FORM.group  # as good, and whole groups
        return cls(codes, replace(scales.raw, shape=(prod(scales.shape) // across, across)), block)

    def row_scales(self, start: int, stop: int) -> torch.Tensor:
        """The scales of stored rows [start, stop), counted through all matrices: float32 (rows, columns of blocks)."""
        stored = self.scales.load()
        grid = (stored.float() - 127).exp2() if stored.dtype == torch.uint8 else stored.float()
        height = self.codes.shape[-2]
        rows = torch.arange(start, stop)
        return grid[rows // height * -(-height // self.block[0]) + rows % height // self.block[0]]


class Fp8Tensors:
    """All fp8 tensors of a checkpoint, found by where their codes lie."""

    def __init__(self, tensors: Iterable[Fp8Tensor]) -> None:
        self._by_path: dict[str, list[Fp8Tensor]] = {}
        for tensor in sorted(tensors, key=lambda tensor: tensor.codes.offset):
            self._by_path.setdefault(tensor.codes.path, []).append(tensor)
        self._starts = {path: [each.codes.offset for each in held] for path, held in self._by_path.items()}

    def rows(self, run: Run) -> Iterator[tuple[Fp8Tensor, int, int]]:
        """The stored rows that a run of codes consists of, as (tensor, first, last + 1).

        Raises NotBytesInOrder where it cuts one.
        """
        path, offset, nbytes = run
        end = offset + nbytes
        while offset < end:
            tensor = self._by_path[path][bisect_right(self._starts[path], offset) - 1]
            stop = min(end, tensor.codes.offset + tensor.codes.nbytes)
            width = tensor.codes.shape[-1]
            first, cut = divmod(offset - tensor.codes.offset, width)
            if cut or (stop - offset) % width:
                raise NotBytesInOrder(f"a part of a row of {tensor.codes.name}")
            yield tensor, first, first + (stop - offset) // width
            offset = stop


@dataclass(frozen=True)
class Fp8Parameter:
    """A parameter that consists of stored rows, in any order.

    codes: their bytes, row by row. tensors: where the scales of each are found. dtype: what elements are rounded to.
    """

    codes: Raw
    tensors: Fp8Tensors
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def moved(self, codes: Raw) -> "Fp8Parameter":
        """Another order of codes, of other tensors too; NotBytesInOrder where rows are not whole ones."""
        made = replace(self, codes=codes)
        if {(tensor.codes.shape[-1], tensor.block[1]) for tensor in made._held} != {(codes.shape[-1], self._width)}:
            raise NotBytesInOrder("rows of another length")
        return made

    @property
    def _width(self) -> int:
        """Columns that share a scale."""
        return self._held[0].block[1]

    @cached_property
    def _held(self) -> tuple[Fp8Tensor, ...]:
        return tuple(tensor for run in self.codes.parts for tensor, _, _ in self.tensors.rows(run))

    @cached_property
    def form(self) -> Fp8 | None:
        """The format that its rows run in; None where it is not made for such blocks, or for that dtype."""
        return _FORM if self.dtype == "bfloat16" and self._width % _FORM.group == 0 else None

    def packed(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Rows [start, stop) as they run, uint8 (stop - start, …, bytes of a row); only where it has a form.

        Raises UserError where a code or a scale is no number.
        """
        from penstock.quant.rearranging import pack_fp8  # imports numba: only where something is packed

        codes, scales = self._read(start, stop)
        groups = np.arange(0, self.shape[-1], _FORM.group) // self._width
        try:
            rows = pack_fp8(codes.numpy(), scales.numpy()[:, groups])
        except ValueError as error:
            raise UserError(f"{self._held[0].codes.name} holds {error}. Download it again.") from error
        return rows.reshape(stop - start, *self.shape[1:-1], -1)

    def load(self, start: int | None = None, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) of the first dimension: code · scale in float32, rounded to its dtype."""
        first, last, _ = slice(start, stop).indices(self.shape[0])
        dtype: torch.dtype = getattr(torch, self.dtype)
        if first >= last:
            return torch.empty((0, *self.shape[1:]), dtype=dtype)
        codes, scales = self._read(first, last)
        wide = scales.repeat_interleave(self._width, 1)[:, : self.shape[-1]]
        return (codes.view(torch.float8_e4m3fn).float() * wide).to(dtype).view(last - first, *self.shape[1:])

    def _read(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Bytes of codes (rows, columns), and the scales of each row (rows, columns of blocks); not of no rows."""
        runs = self.codes.extents(start, stop)
        codes = torch.frombuffer(read_runs(runs), dtype=torch.uint8).view(-1, self.shape[-1])
        parts = [tensor.row_scales(first, last) for run in runs for tensor, first, last in self.tensors.rows(run)]
        return codes, torch.cat(parts)
