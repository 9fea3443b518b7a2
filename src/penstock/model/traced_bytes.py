"""A stand-in for tensors that follows, through transformers' conversion operations, where their bytes come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from math import prod
from typing import Any

import torch

from penstock.model.parameter_source import Raw, Run

MOST_RUNS = 1024  # a parameter in more pieces than this is not traced, unless the pieces are long
LONG_RUN_BYTES = 64 << 10


class NotBytesInOrder(Exception):
    """An operation does more than put long runs of bytes one after another."""


class Traced:
    """Passes for a tensor where stacking, concatenating and splitting are all that is done; raises NotBytesInOrder."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw
        self.shape = torch.Size(raw.shape)
        self.ndim = len(raw.shape)

    def size(self, dim: int) -> int:
        return self.shape[dim]

    def contiguous(self) -> Traced:
        return self

    def squeeze(self, dim: int) -> Traced:
        shape = list(self.shape)
        if shape[dim] == 1:
            del shape[dim]
        return self._like(shape, self.raw.parts)

    def _like(self, shape: Sequence[int], parts: Sequence[Run]) -> Traced:
        return Traced(Raw(tuple(shape), self.raw.dtype, tuple(parts)))

    def __getattr__(self, name: str) -> Any:
        raise NotBytesInOrder(name)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operations: dict[Any, Callable[..., Any]] = {
            torch.stack: _stack,
            torch.cat: _cat,
            torch.chunk: _chunk,
            torch.split: _split,
        }
        if function not in operations:
            raise NotBytesInOrder(str(function))
        return operations[function](*args, **(kwargs or {}))


def _stack(tensors: Sequence[Traced], dim: int = 0) -> Traced:
    dim %= tensors[0].ndim + 1
    return _cat([each._like((*each.shape[:dim], 1, *each.shape[dim:]), each.raw.parts) for each in tensors], dim)


def _cat(tensors: Sequence[Traced], dim: int = 0) -> Traced:
    first = tensors[0].shape
    dim %= len(first)
    if len({(*each.shape[:dim], *each.shape[dim + 1 :]) for each in tensors}) > 1:
        raise ValueError(f"their shapes differ: {sorted({tuple(each.shape) for each in tensors})}")
    outer = prod(first[:dim])
    runs = _Runs(sum(each.raw.nbytes for each in tensors))
    for index in range(outer):
        for each in tensors:
            inner_bytes = each.raw.nbytes // outer
            runs.extend(each.raw.between(index * inner_bytes, (index + 1) * inner_bytes))
    shape = (*first[:dim], sum(each.shape[dim] for each in tensors), *first[dim + 1 :])
    return tensors[0]._like(shape, runs.kept)


def _chunk(tensor: Traced, chunks: int, dim: int = 0) -> list[Traced]:
    return _split(tensor, -(-tensor.shape[dim] // chunks), dim)


def _split(tensor: Traced, sizes: int | Sequence[int], dim: int = 0) -> list[Traced]:
    dim %= tensor.ndim
    whole = tensor.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, whole - start) for start in range(0, whole, sizes)]
    if sum(sizes) != whole:
        raise ValueError(f"{list(tensor.shape)} cannot be split into {list(sizes)} along dimension {dim}")
    outer = prod(tensor.shape[:dim])
    unit_bytes = tensor.raw.nbytes // max(outer * whole, 1)
    pieces = []
    for size, start in zip(sizes, accumulate(sizes, initial=0), strict=False):
        runs = _Runs(outer * size * unit_bytes)
        for index in range(outer):
            begin = (index * whole + start) * unit_bytes
            runs.extend(tensor.raw.between(begin, begin + size * unit_bytes))
        pieces.append(tensor._like((*tensor.shape[:dim], size, *tensor.shape[dim + 1 :]), runs.kept))
    return pieces


class _Runs:
    """Runs of file bytes, joined where they touch; gives up where they become many and short."""

    def __init__(self, nbytes: int) -> None:
        self.kept: list[Run] = []
        self._most = max(MOST_RUNS, nbytes // LONG_RUN_BYTES)

    def extend(self, runs: Sequence[Run]) -> None:
        for path, offset, nbytes in runs:
            if self.kept and self.kept[-1][0] == path and sum(self.kept[-1][1:]) == offset:
                self.kept[-1] = (path, self.kept[-1][1], self.kept[-1][2] + nbytes)
            else:
                self.kept.append((path, offset, nbytes))
        if len(self.kept) > self._most:
            raise NotBytesInOrder(f"more than {self._most} runs")
