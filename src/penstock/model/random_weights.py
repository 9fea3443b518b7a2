"""Weights for a model that has only a config: for sizing and timing, never for text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from penstock.model.packing import holds_experts
from penstock.model.quantized import Quantized
from penstock.quant.fp8 import Fp8
from penstock.quant.mxfp4 import Mxfp4
from penstock.quant.rows import BLOCK

_SIGMA = 0.02
_POOL = (1 << 22) + 12289  # noise drawn once; a length that no row width divides, so that rows differ
_FP8_SCALE, _MXFP4_SCALE = 2.0**-8, 120  # with which codes of noise stand for such weights; the latter is 2^-7


@dataclass(frozen=True)
class RandomParameter:
    """A parameter of repeated noise (matrices), ones (norms) or zeros (biases); the same at every call.

    form: what its model's checkpoint has it in, other noise of the same size.
    """

    name: str
    shape: tuple[int, ...]
    pool: torch.Tensor
    at: int
    form: Fp8 | Mxfp4 | None = None
    dtype: str = "float32"

    @property
    def turned(self) -> bool:
        """Whether rows of the form run along the last dimension but one."""
        return isinstance(self.form, Mxfp4)

    def load(self, start: int | None = None, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) in float32."""
        rows = range(*slice(start, stop).indices(self.shape[0])) if self.shape else range(1)
        shape = (len(rows), *self.shape[1:]) if self.shape else ()
        if len(self.shape) < 2:
            fill = torch.zeros if "bias" in self.name else torch.ones
            return fill(shape)
        width = torch.Size(self.shape[1:]).numel()
        return self._noise(self.pool, self.at + rows.start * width, len(rows) * width).view(shape)

    def packed(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Rows [start, stop) in its form, uint8 (stop - start, …, bytes of a row)."""
        from penstock.quant.rearranging import pack_fp8, pack_mxfp4  # imports numba: only where something is packed

        if isinstance(self.form, Mxfp4):
            experts, columns, rows = stop - start, *self.shape[1:]
            size = rows * columns // 2
            noise = self._noise(self.pool.view(torch.uint8), self.at + start * size, experts * size)
            exponents = np.full((experts, rows, columns // BLOCK), _MXFP4_SCALE, np.uint8)
            return pack_mxfp4(noise.numpy().reshape(*exponents.shape, -1), exponents)
        values, group = self.load(start, stop), Fp8().group
        codes = (values / _FP8_SCALE).to(torch.float8_e4m3fn).view(torch.uint8).view(-1, self.shape[-1])
        scales = np.full((len(codes), -(-self.shape[-1] // group)), _FP8_SCALE, np.float32)
        return pack_fp8(codes.numpy(), scales).reshape(*values.shape[:-1], -1)

    def _noise(self, pool: torch.Tensor, first: int, count: int) -> torch.Tensor:
        return pool[torch.arange(first, first + count) % len(pool)]


def plan_parameters(model: Any, quantized: Quantized | None = None, seed: int = 0) -> dict[str, RandomParameter]:
    """A source for every parameter and persistent buffer of a skeleton, quantised as its config says."""
    forms = _forms(model, quantized) if quantized else {}
    pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(seed)) * _SIGMA
    plan, at, known = {}, 0, dict[int, RandomParameter]()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in known:
            known[id(tensor)] = RandomParameter(name, tuple(tensor.shape), pool, at, forms.get(name))
            at += tensor.numel() % _POOL
        plan[name] = known[id(tensor)]
    return plan


def _forms(model: Any, quantized: Quantized) -> Mapping[str, Fp8 | Mxfp4]:
    """The format of each matrix that transformers would look for in a quantised checkpoint."""
    from transformers.quantizers.base import HfQuantizer  # in no other case: these are not everywhere alike
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = HfQuantizer.get_modules_to_not_convert(model, quantized.kept and list(quantized.kept))
    forms: dict[str, Fp8 | Mxfp4] = {}
    for name, module in model.named_modules():
        if not should_convert_module(name, kept):
            continue
        stacks = {f"{name}.{n}": p.shape for n, p in module._parameters.items() if p is not None and p.dim() > 2}
        if quantized.method == "mxfp4":
            if holds_experts(module) and module.is_transposed:
                forms |= {param: Mxfp4() for param, shape in stacks.items() if shape[-2] % BLOCK == 0}
        elif quantized.block is None or quantized.block[1] % Fp8().group == 0:
            if type(module) is nn.Linear:
                forms[f"{name}.weight"] = Fp8()
            elif holds_experts(module) and not module.is_transposed:
                forms |= dict.fromkeys(stacks, Fp8())
    return forms
