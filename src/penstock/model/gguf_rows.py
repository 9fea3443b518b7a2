"""transformers' rules for the tensors of a GGUF file, and how rows of a parameter come from rows of its tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from penstock.model.gguf_header import GgufTensor

Array = npt.NDArray[Any]

# What a transformers tensor processor raises when it is shown a shape that it was not made for.
_PROCESSOR_ERRORS = (ValueError, TypeError, KeyError, IndexError, RuntimeError, ZeroDivisionError)
_APART = 2.0**40  # between the numbers of two probes


@dataclass(frozen=True, slots=True)
class Rules:
    """transformers' own rules for one file: which tensor becomes which parameter, and what is done to its values."""

    processor: Any
    names: Mapping[str, str]

    def apply(self, weights: Mapping[str, Array]) -> dict[str, torch.Tensor]:
        """Parameters made of dequantised tensors by name, in float32; tensors that no parameter wants vanish."""
        made: dict[str, torch.Tensor] = {}
        for name, values in weights.items():
            done = self.processor.process(
                weights=values, name=name, tensor_key_mapping=self.names, parsed_parameters={"tensors": made}
            )
            if done.name in self.names:
                made[self.names[done.name]] = torch.from_numpy(np.ascontiguousarray(done.weights))
        return made


@dataclass(frozen=True, slots=True)
class RowRule:
    """How rows of a parameter come from rows of its tensors.

    ``same``: rows [a, b) are the rules applied to rows [a, b). Where these change no number, a row is the tensors' rows
    end to end, of the tensors that ``joined`` counts off (gate and up of an expert; mostly the one there is).
    ``moved``: row i is row ``order[i]`` of the one tensor, unchanged (Llama's queries and keys). ``whole``: only the
    whole tensor will do (GPT-2's transposed matrices).
    """

    kind: Literal["same", "moved", "whole"]
    order: npt.NDArray[np.int64] | None = None
    joined: tuple[int, ...] = ()


def probe(tensor: GgufTensor) -> Array:
    """A stand-in with the tensor's true rows, every value another, at most two of each later dimension."""
    shape = (tensor.shape[0], *(min(length, 2) for length in tensor.shape[1:]))
    return np.arange(torch.Size(shape).numel(), dtype=np.float64).reshape(shape)


def applied(rules: Rules, values: Sequence[Array], tensors: Sequence[GgufTensor]) -> dict[str, torch.Tensor]:
    """Parameters made of values in the tensors' places; none where the rules take no such values."""
    try:
        with np.errstate(all="ignore"):
            return rules.apply({tensor.name: value for tensor, value in zip(tensors, values, strict=True)})
    except _PROCESSOR_ERRORS:
        return {}


def row_rule(rules: Rules, name: str, shape: tuple[int, ...], tensors: tuple[GgufTensor, ...]) -> RowRule:
    """Find by trial what the rules do to rows: a trial per tensor replaces a table per architecture."""
    probes = [probe(tensor) + at * _APART for at, tensor in enumerate(tensors)]
    whole = applied(rules, probes, tensors).get(name)
    rows = shape[0] if shape else 0
    if whole is None or len(whole) != rows or any(len(each) != rows for each in probes):
        return RowRule("whole")
    middle = rows // 2
    parts = [(a, b) for a, b in ((0, middle), (middle, rows), (middle, middle + 1)) if a < b]
    if all(_same(applied(rules, [p[a:b] for p in probes], tensors).get(name), whole[a:b]) for a, b in parts):
        return RowRule("same", joined=_joined(probes, whole))
    if len(tensors) == 1 and whole.shape == probes[0].shape:
        width = probes[0].size // rows
        order = whole.reshape(rows, -1)[:, 0].numpy() // width
        if np.array_equal(np.sort(order), np.arange(rows)) and np.array_equal(
            probes[0][order.astype(np.int64)], whole.numpy()
        ):
            return RowRule("moved", order.astype(np.int64))
    return RowRule("whole")


def _joined(probes: Sequence[Array], whole: torch.Tensor) -> tuple[int, ...]:
    """The order in which rows of one or two tensors lie end to end in the whole; none where they do not."""
    orders = [(0, 1), (1, 0)] if len(probes) == 2 else [(0,)] if len(probes) == 1 else []
    for order in orders if whole.dim() > 1 else []:
        if np.array_equal(np.concatenate([probes[at] for at in order], 1), whole.numpy()):
            return order
    return ()


def _same(left: torch.Tensor | None, right: torch.Tensor) -> bool:
    return (
        left is not None and left.shape == right.shape and np.array_equal(left.numpy(), right.numpy(), equal_nan=True)
    )
