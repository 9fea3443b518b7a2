"""Embedding tables read by row: only the rows of the tokens at hand leave the disk."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from penstock.memory.clock import Clock
from penstock.memory.device import Device
from penstock.memory.direct import DirectReader
from penstock.memory.pager import Pager
from penstock.model.pages import Page, Slice
from penstock.quant.forms import named
from penstock.quant.packed import Packed

if TYPE_CHECKING:
    from penstock.engine.build import Blueprint

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


def bind_embeddings(plan: "Blueprint", pager: Pager, device: Device, clock: Clock) -> None:
    """Put a table of rows where each paged embedding's weight was."""
    compute = plan.precision.compute
    for param, names in plan.layout.names.items():
        for name in names:
            owner, _, attribute = name.rpartition(".")
            module = plan.skeleton.get_submodule(owner)
            if isinstance(module, nn.Embedding):
                read = _row_reader(plan, pager.reader, clock)
                rows = EmbeddingRows(plan.layout.where(param), pager.at_rest, read, compute, device.torch_device)
                table = RowTable(tuple(module.weight.shape), compute, device.torch_device, rows)
                module._parameters[attribute] = table  # type: ignore[assignment]  # stands where the weight was


def _row_reader(plan: "Blueprint", reader: DirectReader, clock: Clock) -> ReadRows:
    """Rows of a slice from its page's files; converted one by one where the page has none. Compute waits for them."""

    def read(page: Page, part: Slice, rows: list[int]) -> torch.Tensor:
        row_bytes = part.nbytes // (part.stop - part.start)
        with clock.wait("disk→cpu"), clock.lane("disk→cpu", len(rows) * row_bytes, f"rows of {page.name}"):
            return stored(page, part, rows, row_bytes)

    def stored(page: Page, part: Slice, rows: list[int], row_bytes: int) -> torch.Tensor:
        form = named(part.dtype)
        dtype: torch.dtype = plan.precision.stored if form else getattr(torch, part.dtype)
        for extent in page.extents or ():
            if extent.at <= part.offset and part.offset + part.nbytes <= extent.at + extent.nbytes:
                offset = extent.offset + part.offset - extent.at
                found = reader.read_rows(extent.path, offset, row_bytes, rows)
                return Packed(form, part.shape[-1], found).wide(plan.precision.compute) if form else found.view(dtype)
        source = plan.sources[part.param]
        return torch.cat([source.load(part.start + row, part.start + row + 1).to(dtype) for row in rows])

    return read
