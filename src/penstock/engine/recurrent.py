"""Layers that keep a fixed state per row instead of keys: their modules see every row by itself.

Such a module reads its tokens as one sequence, so it cannot take a flat call. Rows that go on from a state, by as many
tokens each, go through it as one batch; a prefill goes alone, because scans take much memory per row. These groups run
side by side in lanes that wait for each other at every paged matrix, which is then applied to all rows' tokens at once.
So each page is asked for once per call, and products are as large as they are anywhere else.

Shapes: T tokens of the call, R rows of a group, N tokens of each of its spans.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import greenlet
import torch
from torch import nn
from transformers import DynamicCache

from penstock.engine.call import Batch, current_call, starts_of
from penstock.engine.masks import Predicate


class RowStates:
    """Recurrent state per row and cache layer, in transformers' own cache layers, on the compute device."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[int, Any]] = {}

    def joined(self, rows: Sequence[int], layer: int) -> Any:
        """One cache layer with the states of several rows, which all have one, in order; a copy."""
        return _join([self._rows[row][layer] for row in rows])

    def keep(self, rows: Sequence[int], layer: int, joined: Any) -> None:
        """Take a joined layer apart again, each row's part to itself."""
        for at, row in enumerate(rows):
            self._rows.setdefault(row, {})[layer] = _part(joined, at)

    def forget(self, row: int) -> None:
        """Free a row's state, if it has any."""
        self._rows.pop(row, None)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows' states, which are alike."""
        one = next(iter(self._rows.values()), {})
        return len(self._rows) * sum(state_bytes(layer) for layer in one.values())


def state_bytes(layer: Any) -> int:
    """Bytes of the tensors that a cache layer holds."""
    return sum(t.nbytes for value in vars(layer).values() for t in _tensors(value))


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, dict):
        return [t for part in value.values() for t in _tensors(part)]
    return [value] if isinstance(value, torch.Tensor) and value.dim() else []


def _join(layers: Sequence[Any]) -> Any:
    joined = copy.copy(layers[0])
    for name in vars(joined):
        setattr(joined, name, _joined([getattr(layer, name) for layer in layers]))
    return joined


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {key: _joined([value[key] for value in values]) for key in first}
    return torch.cat(list(values)) if _tensors(first) else first


def _part(joined: Any, at: int) -> Any:
    part = copy.copy(joined)
    for name, value in vars(joined).items():
        setattr(part, name, _row_of(value, at))
    return part


def _row_of(value: Any, at: int) -> Any:
    if isinstance(value, dict):
        return {key: _row_of(part, at) for key, part in value.items()}
    return value[at : at + 1].clone() if _tensors(value) else value


class MixedState(RuntimeError):
    """A recurrent module that writes keys and values too: it cannot be taken row by row alone."""


class _RowsCache(DynamicCache):  # type: ignore[misc]  # transformers is untyped
    """What a recurrent module sees as its cache: the states of one group's rows."""

    def __init__(self, layers: list[Any]) -> None:
        super().__init__()
        self.layers = layers

    def update(self, *args: Any, **kwargs: Any) -> Any:
        raise MixedState("a recurrent module writes keys and values")


@dataclass(frozen=True, slots=True)
class _Group:
    """Spans that a module can take as one batch. tokens (R, N): their places in the call."""

    rows: tuple[int, ...]
    goes_on: bool
    tokens: torch.Tensor

    def take(self, value: Any, total: int, cache: _RowsCache) -> Any:
        """This group's part of an argument of the call; no row is padded, so that masks are left out."""
        if isinstance(value, DynamicCache):
            return cache
        if isinstance(value, Predicate):
            return None
        if isinstance(value, torch.Tensor):
            return value[0][self.tokens] if value.shape[:2] == (1, total) else value
        if type(value) in (tuple, list):
            return type(value)(self.take(part, total, cache) for part in value)
        if type(value) is dict:
            return {key: self.take(part, total, cache) for key, part in value.items()}
        return value


def _groups(batch: Batch) -> list[_Group]:
    alike: dict[tuple[int, int], list[int]] = {}
    for at, span in enumerate(batch.spans):
        alike.setdefault((span.count, -1) if span.first else (span.count, at), []).append(at)
    starts, device = torch.tensor(starts_of(batch.spans)), batch.ids.device
    return [
        _Group(
            tuple(batch.spans[at].row for at in members),
            alone < 0,
            (starts[members][:, None] + torch.arange(count)).to(device),
        )
        for (count, alone), members in alike.items()
    ]


@dataclass(frozen=True, slots=True)
class _Meeting:
    """Where a lane waits for the others: a matrix and what it is to be applied to."""

    product: Callable[[torch.Tensor], torch.Tensor]
    x: torch.Tensor


class _Lane(greenlet.greenlet):
    """One group's run through a module."""

    def __init__(self, run: Callable[[], Any]) -> None:
        super().__init__(run)
        self.waits: _Meeting | None = None
        self.result: Any = None

    def go(self, *given: torch.Tensor) -> None:
        """Run to the next matrix, or to the end."""
        reached = self.switch(*given)
        self.waits, self.result = (None, reached) if self.dead else (reached, None)


def _side_by_side(runs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Results of runs that share every product they meet at."""
    if len(runs) == 1:
        return [runs[0]()]
    lanes = [_Lane(run) for run in runs]
    for lane in lanes:
        lane.go()
    while waiting := [lane for lane in lanes if lane.waits is not None]:
        product = waiting[0].waits.product  # type: ignore[union-attr]  # those that wait say for what
        together = [(lane, lane.waits.x) for lane in waiting if lane.waits and lane.waits.product is product]
        sizes = [x.shape[:-1] for _, x in together]
        out = product(torch.cat([x.reshape(-1, x.shape[-1]) for _, x in together]))
        parts = out.split([size.numel() for size in sizes])
        for (lane, _), part, size in zip(together, parts, sizes, strict=True):
            lane.go(part.view(*size, part.shape[-1]))
    return [lane.result for lane in lanes]


def take_by_row(model: nn.Module, modules: Mapping[str, Sequence[int]], config: Any) -> None:
    """Give the modules that keep recurrent state a forward that sees rows apart; after weights are tied to pages.

    modules: their names and the cache layers that each writes to. Those that have it from an earlier engine keep it.
    """
    if not modules:
        return
    blank = DynamicCache(config=config).layers
    for name, layers in modules.items():
        module = model.get_submodule(name)
        if "forward" in vars(module):
            continue
        for leaf in module.modules():
            if type(leaf) is nn.Linear and "forward" in vars(leaf):
                leaf.forward = _met(leaf.forward)  # type: ignore[method-assign, assignment]  # as an instance's own
        module.forward = _by_row(module.forward, tuple(layers), blank)


def _met(product: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def met(x: torch.Tensor) -> torch.Tensor:
        lane = greenlet.getcurrent()
        if not isinstance(lane, _Lane) or lane.parent is None:
            return product(x)
        out: torch.Tensor = lane.parent.switch(_Meeting(product, x))
        return out

    return met


def _by_row(forward: Callable[..., Any], layers: Sequence[int], blank: Sequence[Any]) -> Callable[..., Any]:
    def by_row(*args: Any, **kwargs: Any) -> Any:
        batch = current_call().batch
        total, groups = batch.ids.shape[1], _groups(batch)
        outputs = _side_by_side([lambda group=group: on(group, batch, total, args, kwargs) for group in groups])  # type: ignore[misc]  # mypy does not see through the default
        return _placed(outputs, groups, total)

    def on(group: _Group, batch: Batch, total: int, args: Any, kwargs: Any) -> Any:
        states, cache = batch.states, _RowsCache(list(blank))
        for layer in layers:
            fresh = not group.goes_on
            cache.layers[layer] = copy.deepcopy(blank[layer]) if fresh else states.joined(group.rows, layer)
        out = forward(*group.take(args, total, cache), **group.take(kwargs, total, cache))
        for layer in layers:
            states.keep(group.rows, layer, cache.layers[layer])
        return out

    return by_row


def _placed(outputs: Sequence[Any], groups: Sequence[_Group], total: int) -> Any:
    """The groups' outputs (R, N, …), or (R, heads, N, …), as one of the whole call: (1, T, …)."""
    first = outputs[0]
    if isinstance(first, tuple):
        return tuple(_placed(parts, groups, total) for parts in zip(*outputs, strict=True))
    if not isinstance(first, torch.Tensor):
        return first
    by_head = any(part.shape[:2] != group.tokens.shape for part, group in zip(outputs, groups, strict=True))
    parts = [part.transpose(1, 2) for part in outputs] if by_head else outputs
    out = first.new_empty((1, total, *parts[0].shape[2:]))
    for part, group in zip(parts, groups, strict=True):
        out[0, group.tokens] = part
    return out.transpose(1, 2) if by_head else out
