"""Vectors and small matrices of layers that are computed on two processors in turn: on both, and bound to one."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class Twins:
    """Tensors that modules hold beside their pages, with a copy on the host."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._places: list[tuple[dict[str, Any], str, torch.Tensor, torch.Tensor]] = []
        copies: dict[int, torch.Tensor] = {}
        for part in (part for module in modules for part in module.modules()):
            held: tuple[dict[str, Any], ...] = (part._parameters, part._buffers, vars(part))
            for tensors in held:
                for name, value in tensors.items():
                    if type(value) not in (torch.Tensor, nn.Parameter) or value.is_meta:
                        continue  # meta: what pages bring
                    if id(value) not in copies:
                        copies[id(value)] = value.detach().to("cpu", copy=True)
                    self._places.append((tensors, name, value, copies[id(value)]))
        self._on_host = False

    def bind(self, on_host: bool) -> None:
        """Give modules the tensors of one of both."""
        if on_host == self._on_host:
            return
        for tensors, name, own, copy in self._places:
            tensors[name] = copy if on_host else own
        self._on_host = on_host
