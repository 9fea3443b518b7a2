"""Laying a model's matrices out in pages, in the order they run, and telling its modules where they went."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from penstock.errors import UserError
from penstock.model.packing import Packing, holds_experts
from penstock.model.pages import SECTOR, Extent, Kind, Page, Slice
from penstock.model.parameter_source import ParameterSource, Run
from penstock.quant.forms import Form

PAGE_BYTES = 64 << 20  # a page grows to this; what is larger is cut where it can be
_PAGES, _PAGE_BYTES_MIN = 64, 4 << 20  # a small model has smaller pages, so that shares of it can be met
PAGE_BYTES_MAX = 256 << 20  # what cannot be cut may be this large
_CORE_BYTES = 256 << 10  # matrices under this stay resident with the vectors


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [start, stop) of a parameter's first dimension."""

    param: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Unit:
    """Pieces that should share a page: the matrices of one child of a decoder layer, say."""

    name: str
    kind: Kind
    layer: int | None
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """pages: in order of execution, embeddings last. core: parameters that stay resident in compute dtype.

    experts: for each experts module, its attributes and parameter names, when its experts are paged by groups.
    names: every name of a paged parameter, itself included (tied embeddings, blocks that layers share).
    """

    pages: tuple[Page, ...]
    core: tuple[str, ...]
    experts: Mapping[str, Mapping[str, str]]
    names: Mapping[str, tuple[str, ...]]

    def where(self, param: str) -> list[tuple[Page, Slice]]:
        """The pages that hold a parameter and its slices there, in row order."""
        found = [(page, s) for page in self.pages for s in page.slices if s.param == param]
        return sorted(found, key=lambda at: at[1].start)


def lay_out(
    model: nn.Module,
    leaves: Sequence[str],
    sources: Mapping[str, ParameterSource],
    stored: torch.dtype,
    compute: torch.dtype,
    packing: Packing | None = None,
    *,
    page_bytes: int | None = None,
    core_bytes: int | None = None,
) -> Layout:
    """Pages for every matrix of the model, in the order ``leaves`` run.

    stored: what matrices are kept as where the checkpoint's own type is neither it nor exactly widened to ``compute``.
    packing: which of them take fewer bits instead.
    Raises UserError where a matrix can neither be cut nor fits a page.
    """
    total = sum(p.numel() for p in model.parameters()) * stored.itemsize
    limit = min(_CORE_BYTES, total // 4096) if core_bytes is None else core_bytes
    planner = _Planner(model, sources, stored, compute, packing or Packing(), limit)
    page_bytes = planner.page_bytes = page_bytes or min(PAGE_BYTES, max(planner.total() // _PAGES, _PAGE_BYTES_MIN))
    units = list(planner.units(leaves))
    pages = [planner.page(index, unit) for index, unit in enumerate(_packed(units, planner, page_bytes))]
    paged = {piece.param for unit in units for piece in unit.pieces}
    names = planner.names_of(paged)
    taken = {name for alike in names.values() for name in alike}
    core = tuple(name for name, _ in model.named_parameters(remove_duplicate=False) if name not in taken)
    return Layout(tuple(pages), core, planner.experts, names)


class _Planner:
    def __init__(
        self,
        model: nn.Module,
        sources: Mapping[str, ParameterSource],
        stored: torch.dtype,
        compute: torch.dtype,
        packing: Packing,
        core_bytes: int,
    ) -> None:
        self.model, self.sources, self.stored, self.compute = model, sources, stored, compute
        self.page_bytes, self.core_bytes = PAGE_BYTES, core_bytes
        self.experts: dict[str, dict[str, str]] = {}
        self._transposed = {
            f"{name}.{attribute}"
            for name, module in model.named_modules()
            if holds_experts(module) and module.is_transposed
            for attribute in module._parameters
        }
        self._layers = layer_list(model)
        self._forms, self._own = packing.forms(model, self._layers), packing.own

    def total(self) -> int:
        """Bytes of all parameters, as pages would hold them."""
        names = {id(p): name for name, p in self.model.named_parameters(remove_duplicate=False) if name in self.sources}
        return sum(self.bytes_of(self.whole(name)) for name in names.values() if self.sources[name].shape)

    def dtype_of(self, param: str) -> torch.dtype:
        """What a parameter is kept as where it is not packed: the checkpoint's own type if exact, else ``stored``."""
        if not hasattr(self.sources[param], "extents"):
            return self.stored  # converted in any case
        own: torch.dtype = getattr(torch, self.sources[param].dtype)
        widened = self.compute == torch.float32 and own in (torch.bfloat16, torch.float16)
        return own if own == self.compute or widened else self.stored

    def form_of(self, param: str) -> Form | None:
        """How a parameter's page slice is packed; None where it is not."""
        source = self.sources[param]
        own: Form | None = getattr(source, "form", None) if self._own else None
        if getattr(source, "turned", False) != (param in self._transposed):
            own = None  # rows along the wrong dimension
        return self._forms.get(param, own)

    def turns(self, param: str) -> bool:
        """Whether a slice has a parameter's last two dimensions the other way round: packed experts' rows run along in.

        So the kernels take experts that transformers multiplies from the other side.
        """
        return param in self._transposed and self.form_of(param) is not None

    def bytes_of(self, piece: Piece) -> int:
        """Of a page's slice."""
        form = self.form_of(piece.param)
        return self._wide_bytes(piece) if form is None else form.nbytes(self._laid(piece))

    def stays(self, piece: Piece) -> bool:
        """Whether a matrix is so small that it stays resident; the same however many bits an element has."""
        return self._wide_bytes(piece) < self.core_bytes

    def _wide_bytes(self, piece: Piece) -> int:
        return prod(self._shape(piece)) * self.dtype_of(piece.param).itemsize

    def _shape(self, piece: Piece) -> tuple[int, ...]:
        return (piece.stop - piece.start, *self.sources[piece.param].shape[1:])

    def _laid(self, piece: Piece) -> tuple[int, ...]:
        """The shape of a piece as its slice has it."""
        shape = self._shape(piece)
        return (*shape[:-2], shape[-1], shape[-2]) if self.turns(piece.param) else shape

    def whole(self, param: str) -> Piece:
        return Piece(param, 0, self.sources[param].shape[0])

    def units(self, leaves: Sequence[str]) -> Iterator[Unit]:
        """Units in execution order: leaf modules' matrices, experts in groups, embeddings at the end."""
        done: set[int] = set()
        for name in leaves:
            module = self.model.get_submodule(name)
            if isinstance(module, nn.Embedding) or (list(module.children()) and not holds_experts(module)):
                continue  # embeddings are read by row; a module with children keeps its own matrices resident
            matrices = {
                n: p for n, p in module._parameters.items() if p is not None and p.dim() > 1 and id(p) not in done
            }
            if holds_experts(module):
                yield from self._expert_groups(name, module, matrices)
                done |= {id(p) for p in matrices.values()}
                continue
            for attribute, parameter in matrices.items():
                piece = self.whole(f"{name}.{attribute}")
                if self.stays(piece):
                    continue
                done.add(id(parameter))
                unit, layer = self._unit_of(name)
                kind: Kind = "layer" if layer is not None else "head"
                for part in self._cut(piece, isinstance(module, nn.Linear)):
                    yield Unit(unit, kind, layer, (part,))
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Embedding) and id(module.weight) not in done:
                piece = self.whole(f"{name}.weight")
                if not self.stays(piece):
                    done.add(id(module.weight))
                    for part in self._cut(piece, True):
                        yield Unit(name, "embedding", None, (part,))

    def _cut(self, piece: Piece, can_cut: bool) -> Iterator[Piece]:
        """A piece in row chunks of at most a page, where its module can work on some rows at a time."""
        size = self.bytes_of(piece)
        if size <= self.page_bytes:
            yield piece
            return
        if not can_cut:
            if size > PAGE_BYTES_MAX:
                most = PAGE_BYTES_MAX >> 20
                raise UserError(f"{piece.param} takes {size >> 20} MiB; uncut, a page of {most} MiB must hold it")
            yield piece
            return
        count = -(-size // self.page_bytes)
        rows = -(-(piece.stop - piece.start) // count)
        rows = max(1, min(-(-rows // 64) * 64, self.page_bytes * (piece.stop - piece.start) // size))
        for first in range(piece.start, piece.stop, rows):
            yield Piece(piece.param, first, min(first + rows, piece.stop))

    def _expert_groups(self, name: str, module: Any, matrices: Mapping[str, nn.Parameter]) -> Iterator[Unit]:
        """Groups of experts that fill a page each; the pieces of a group cover the same experts in every tensor."""
        count = int(module.num_experts)
        names = {attribute: f"{name}.{attribute}" for attribute, p in matrices.items() if p.shape[0] == count}
        per_expert = sum(self.bytes_of(Piece(param, 0, 1)) for param in names.values())
        if not names:
            return
        if per_expert > PAGE_BYTES_MAX:
            raise UserError(
                f"one expert of {name} takes {per_expert >> 20} MiB; a page holds {PAGE_BYTES_MAX >> 20} MiB"
            )
        self.experts[name] = names
        together = max(1, self.page_bytes // per_expert)
        together = -(-count // -(-count // together))
        _, layer = self._unit_of(name)
        for first in range(0, count, together):
            stop = min(first + together, count)
            pieces = tuple(Piece(param, first, stop) for param in names.values())
            yield Unit(f"{name}[{first}:{stop}]", "experts", layer, pieces)

    def _unit_of(self, name: str) -> tuple[str, int | None]:
        """The direct child of a decoder layer that a module belongs to, and the layer's index."""
        if self._layers and (found := re.match(rf"{re.escape(self._layers)}\.(\d+)\.([^.]+)", name)):
            return found.group(0), int(found.group(1))
        return name, None

    def names_of(self, paged: set[str]) -> dict[str, tuple[str, ...]]:
        """Every name of each paged parameter."""
        by_id: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            by_id.setdefault(id(parameter), []).append(name)
        return {name: tuple(alike) for alike in by_id.values() for name in alike if name in paged}

    def page(self, index: int, unit: Unit) -> Page:
        """Offsets for a unit's pieces, congruent with their place in the file modulo a sector: reads go direct."""
        slices, extents, at = [], [], 0
        raw = all(self._raw(piece) is not None for piece in unit.pieces)
        for piece in unit.pieces:
            nbytes, form = self.bytes_of(piece), self.form_of(piece.param)
            kind = str(self.dtype_of(piece.param)).removeprefix("torch.") if form is None else form.name
            runs = (self._raw(piece) or []) if raw else []
            at = -(-at // SECTOR) * SECTOR + runs[0][1] % SECTOR if runs else -(-at // 64) * 64
            part = piece.param, piece.start, piece.stop
            slices.append(Slice(*part, self._laid(piece), kind, at, nbytes, self.turns(piece.param)))
            run_at = at
            for path, offset, length in runs:
                extents.append(Extent(str(path), offset, length, run_at))
                run_at += length
            at += nbytes
        nbytes = -(-at // SECTOR) * SECTOR
        return Page(index, unit.name, unit.kind, unit.layer, tuple(slices), nbytes, tuple(extents) if raw else None)

    def _raw(self, piece: Piece) -> list[tuple[str, int, int]] | None:
        """Byte runs of a piece in files, or None where it has to be converted."""
        source, form = self.sources[piece.param], self.form_of(piece.param)
        if form is not None:
            found = getattr(source, "packed_extents", None) if form == getattr(source, "form", None) else None
            runs: list[Run] | None = None if found is None else found(piece.start, piece.stop)
            return runs
        if getattr(torch, source.dtype) != self.dtype_of(piece.param):
            return None
        extents = getattr(source, "extents", None)
        return None if extents is None else list(extents(piece.start, piece.stop))


def _packed(units: Sequence[Unit], planner: _Planner, page_bytes: int) -> Iterator[Unit]:
    """Neighbouring pieces of the same unit joined into pages of at most ``page_bytes``."""
    open_unit: Unit | None = None
    for unit in units:
        if open_unit is not None:
            joined = sum(planner.bytes_of(p) for p in open_unit.pieces + unit.pieces)
            same = unit.kind == open_unit.kind == "layer" and unit.name == open_unit.name
            if same and joined <= page_bytes:
                open_unit = Unit(unit.name, unit.kind, unit.layer, open_unit.pieces + unit.pieces)
                continue
            yield open_unit
        open_unit = unit
    if open_unit is not None:
        yield open_unit


def layer_list(model: nn.Module) -> str | None:
    """The name of the longest ModuleList.

    Which modules these are is only a matter of how pages are grouped, unless layers are computed on two processors.
    """
    lists = [(len(m), name) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    return max(lists)[1] if lists else None


def decoder_layers(model: nn.Module) -> Sequence[nn.Module]:
    """The modules that pages are grouped by, in order; what computes them elsewhere checks that there are as many."""
    name = layer_list(model)
    return () if name is None else list(model.get_submodule(name).children())
