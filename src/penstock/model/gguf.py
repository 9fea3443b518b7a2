"""Parameters out of a GGUF file, as transformers' own GGUF loading gives them, but row by row."""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from penstock.errors import UserError
from penstock.model.gguf_header import GgufFile, GgufTensor, read_header
from penstock.model.gguf_rows import Array, RowRule, Rules, applied, probe, row_rule
from penstock.model.parameter_source import Run
from penstock.quant.forms import Form, named

__all__ = ["GgufFile", "GgufParameter", "plan_parameters", "read_header"]

_NAMED_AT_MOST = 3
# transformers asks for the names below every module, 50 ms each. Those of the model itself suffice for nearly all
# families; a few (Bloom) are named from their base model on.
_NAME_DEPTHS = (0, 2)


@dataclass(frozen=True, slots=True)
class GgufParameter:
    """One parameter of a model, dequantised from its tensors on demand.

    shape: of the whole parameter. by_rows: a part of it costs only that part, in time and memory.
    """

    name: str
    shape: tuple[int, ...]
    file: GgufFile
    tensors: tuple[GgufTensor, ...]
    rules: Rules
    rows: RowRule

    @property
    def dtype(self) -> str:
        """torch's name of the dtype that ``load`` gives."""
        return "float32"

    @property
    def by_rows(self) -> bool:
        """Whether ``load`` of a part reads that part alone."""
        return self.rows.kind != "whole"

    @property
    def form(self) -> Form | None:
        """The format that its rows lie in and can run in, unchanged; None where there is none."""
        kind, *others = {tensor.kind.name.lower() for tensor in self.tensors}
        if others or not (self.rows.joined or self.rows.order is not None):
            return None
        lines = sum(prod(tensor.shape[:-1]) for tensor in self.tensors)
        return named(kind) if len(self.shape) > 1 and lines == prod(self.shape[:-1]) else None

    def packed(self, start: int, stop: int) -> Array:
        """Rows [start, stop) as they are stored, uint8 (stop - start, …, bytes of a row); only where it has a form."""
        if self.rows.order is None:
            parts = [self.file.packed(self.tensors[at], start, stop) for at in self.rows.joined]
            return parts[0] if len(parts) == 1 else np.concatenate(parts, 1)
        order = self.rows.order[start:stop]
        low, high = int(order.min()), int(order.max()) + 1
        return self.file.packed(self.tensors[0], low, high)[order - low]

    def packed_extents(self, start: int, stop: int) -> list[Run] | None:
        """The file bytes of rows [start, stop) in its form; None where they do not lie one after another."""
        if self.form is None or self.rows.order is not None:
            return None
        joined = [self.tensors[at] for at in self.rows.joined]
        at_once = stop - start if len(joined) == 1 else 1
        return [
            (str(self.file.path), tensor.offset + row * row_bytes, at_once * row_bytes)
            for row in range(start, stop, at_once)
            for tensor, row_bytes in ((each, each.nbytes // each.shape[0]) for each in joined)
        ]

    def load(self, start: int | None = None, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) of the first dimension in float32, shape (stop - start, …); all of it by default.

        Raises UserError where the file shrank since its header was read, or a shape comes out wrong.
        """
        first, last, _ = slice(start, stop).indices(self.shape[0])
        if first >= last:
            return torch.empty((0, *self.shape[1:]))
        if self.rows.order is not None:
            values = self._moved(self.tensors[0], self.rows.order[first:last])
        elif self.rows.kind == "same":
            values = self._made(first, last)
        else:
            values = self._made(None, None)[first:last]
        if tuple(values.shape) != (last - first, *self.shape[1:]):
            raise _wrong_shape(self.file, self.name, (*values.shape,), self.shape)
        return values

    def _moved(self, tensor: GgufTensor, order: npt.NDArray[np.int64]) -> torch.Tensor:
        # Rows move within a head only, so the range that holds them is hardly larger than what is asked for.
        low, high = int(order.min()), int(order.max()) + 1
        return torch.from_numpy(self.file.read(tensor, low, high)[order - low])

    def _made(self, start: int | None, stop: int | None) -> torch.Tensor:
        weights = {
            tensor.name: self.file.read(tensor, start or 0, tensor.shape[0] if stop is None else stop)
            for tensor in self.tensors
        }
        return self.rules.apply(weights)[self.name]


def plan_parameters(model: torch.nn.Module, file: GgufFile) -> dict[str, GgufParameter]:
    """Where every parameter of a transformers causal LM (meta tensors will do) comes from in a GGUF file.

    Keys are those of ``model.state_dict()``; a tied parameter has the source of the one it is tied to. Raises UserError
    where the architecture is not supported, or tensors are missing or of another size, naming them.
    """
    ties = _ties(model)
    needed = {name for name, _ in model.named_parameters(remove_duplicate=False)} - ties.keys()
    for depth in _NAME_DEPTHS:
        rules = _rules(model, file, depth)
        contributions = _contributions(rules, file)
        if needed <= contributions.keys():
            break
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    parameters: dict[str, GgufParameter] = {}
    for name, shape in wanted.items():
        if tensors := contributions.get(name):
            stored = sum(tensor_numel(tensor) for tensor in tensors)
            if stored != torch.Size(shape).numel():
                raise _wrong_shape(file, name, tensors[0].shape, shape)
            parameters[name] = GgufParameter(name, shape, file, tensors, rules, row_rule(rules, name, shape, tensors))
    parameters |= {name: parameters[owner] for name, owner in ties.items() if owner in parameters}
    if missing := [name for name in wanted if name in needed - parameters.keys()]:
        raise _missing(file, missing, rules)
    return parameters


def tensor_numel(tensor: GgufTensor) -> int:
    """How many values a stored tensor holds."""
    return torch.Size(tensor.shape).numel()


@dataclass(frozen=True, slots=True)
class _Outline:
    """A module as transformers' name map looks at it, down to ``depth`` levels of children only."""

    module: torch.nn.Module
    depth: int
    config: Any = None

    def state_dict(self) -> dict[str, Any]:
        return self.module.state_dict()

    def named_children(self) -> list[tuple[str, "_Outline"]]:
        if self.depth == 0:
            return []
        return [(name, _Outline(child, self.depth - 1)) for name, child in self.module.named_children()]


def _rules(model: torch.nn.Module, file: GgufFile, depth: int) -> Rules:
    try:
        from transformers.modeling_gguf_pytorch_utils import (
            GGUF_SUPPORTED_ARCHITECTURES,
            TENSOR_PROCESSORS,
            TensorProcessor,
            get_gguf_hf_weights_map,
        )
    except ImportError as error:
        raise UserError(f"this version of transformers reads GGUF in another way ({error}): install 5.23") from None
    config: Any = model.config
    supported = {_plain(name) for name in GGUF_SUPPORTED_ARCHITECTURES}
    if _plain(file.architecture) not in supported:
        raise UserError(f"{file.path}: transformers reads no GGUF of architecture {file.architecture!r}")
    processor = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)(config=config.to_dict())
    try:
        names = get_gguf_hf_weights_map(_Outline(model, depth, config), processor)
    except NotImplementedError:  # what transformers raises for a family that gguf has no names for
        raise UserError(f"{file.path}: gguf knows no tensor names for {config.model_type!r}") from None
    return Rules(processor, names)


def _plain(architecture: str) -> str:
    return architecture.replace("-", "").replace("_", "")


def _contributions(rules: Rules, file: GgufFile) -> dict[str, tuple[GgufTensor, ...]]:
    """Which tensors each parameter is made of, found by applying the rules to a few numbers of each tensor."""
    found: dict[str, tuple[GgufTensor, ...]] = {}
    for tensor in file.tensors.values():
        for name in applied(rules, [probe(tensor)], [tensor]) or applied(rules, [np.zeros(tensor.shape)], [tensor]):
            found[name] = (*found.get(name, ()), tensor)
    return found


def _ties(model: torch.nn.Module) -> dict[str, str]:
    """Tied parameter to the one that is stored, as transformers says it and as shared objects show it."""
    first: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(value), name) != name:
            shared[name] = first[id(value)]
    declared: Any = getattr(model, "all_tied_weights_keys", None) or {}
    return shared | dict(declared)


def _wrong_shape(file: GgufFile, name: str, given: tuple[int, ...], needed: tuple[int, ...]) -> UserError:
    return UserError(f"{file.path}: {name} has shape {given}, and the model that the file describes needs {needed}")


def _missing(file: GgufFile, names: list[str], rules: Rules) -> UserError:
    stored = {name: tensor for tensor, name in rules.names.items()}
    said = [f"{stored[name]} ({name})" if name in stored else name for name in names[:_NAMED_AT_MOST]]
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    count = "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"
    return UserError(f"{file.path}: {count} missing: {', '.join(said)}{more}")
