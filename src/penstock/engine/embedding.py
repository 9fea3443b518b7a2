"""Embedding tables read by row: only the rows of the tokens at hand leave the disk."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from penstock.model.pages import Page, Slice
from penstock.quant.packed import Packed

ReadRows = Callable[[Page, Slice, list[int]], torch.Tensor]
Resident = Callable[[int], Mapping[tuple[str, int], torch.Tensor | Packed] | None]


class RowTable(torch.Tensor):
    """Stands where an embedding's weight was; ``torch.nn.functional.embedding`` asks it for rows.

    It has the weight's shape, dtype and device but no bytes. Any other use of it raises.
    """

    rows: Callable[[torch.Tensor], torch.Tensor]

    @staticmethod
    def __new__(cls, shape: Sequence[int], dtype: torch.dtype, device: torch.device, rows: Any) -> "RowTable":
        made: RowTable = torch.Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype, device=device)
        made.rows = rows
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.embedding:
            ids, table = args[0], args[1] if len(args) > 1 else (kwargs or {})["weight"]
            return table.rows(ids.reshape(-1)).view(*ids.shape, table.shape[1])
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]  # torch leaves it so

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]  # a classmethod in torch too
        raise RuntimeError(f"an embedding that is read by row was used in {func}")


class EmbeddingRows:
    """Rows of one table from wherever its pages are: resident ones from memory, the others from their files."""

    def __init__(
        self,
        where: Sequence[tuple[Page, Slice]],
        resident: Resident,
        read: ReadRows,
        compute: torch.dtype,
        device: torch.device,
    ) -> None:
        self.where, self.resident, self.read = tuple(where), resident, read
        self.compute, self.device = compute, device
        self.dim = where[0][1].shape[1]

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (n,) on any device; returns (n, dim) in compute dtype on the compute device."""
        distinct, place = torch.unique(ids.cpu(), return_inverse=True)
        table = torch.empty((len(distinct), self.dim), dtype=self.compute, device=self.device)
        for page, part in self.where:
            mine = ((distinct >= part.start) & (distinct < part.stop)).nonzero()[:, 0]
            if not len(mine):
                continue
            local = distinct[mine] - part.start
            views = self.resident(page.index)
            if views is not None:
                stored = views[part.param, part.start]
                rows = stored[local.to(stored.device)]
                wide = rows.wide(self.compute) if isinstance(rows, Packed) else rows
                table[mine] = wide.to(self.device, self.compute)
            else:
                table[mine] = self.read(page, part, local.tolist()).to(self.device, self.compute)
        return table[place.to(self.device)]
