"""Weights for a model that has only a config: for sizing and timing, never for text."""

from dataclasses import dataclass
from typing import Any

import torch

_SIGMA = 0.02
_POOL = (1 << 22) + 12289  # noise drawn once; a length that no row width divides, so that rows differ


@dataclass(frozen=True)
class RandomParameter:
    """A parameter of repeated noise (matrices), ones (norms) or zeros (biases); the same at every call."""

    name: str
    shape: tuple[int, ...]
    pool: torch.Tensor
    at: int
    dtype: str = "float32"

    def load(self, start: int | None = None, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) in float32."""
        rows = range(*slice(start, stop).indices(self.shape[0])) if self.shape else range(1)
        shape = (len(rows), *self.shape[1:]) if self.shape else ()
        if len(self.shape) < 2:
            fill = torch.zeros if "bias" in self.name else torch.ones
            return fill(shape)
        width = torch.Size(self.shape[1:]).numel()
        first, count = self.at + rows.start * width, len(rows) * width
        return self.pool[(torch.arange(first, first + count) % len(self.pool))].view(shape)


def plan_parameters(model: Any, seed: int = 0) -> dict[str, RandomParameter]:
    """A source for every parameter and persistent buffer of a skeleton."""
    pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(seed)) * _SIGMA
    plan, at, known = {}, 0, dict[int, RandomParameter]()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in known:
            known[id(tensor)] = RandomParameter(name, tuple(tensor.shape), pool, at)
            at += tensor.numel() % _POOL
        plan[name] = known[id(tensor)]
    return plan
