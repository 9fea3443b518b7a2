"""Which matrices of a model are packed: those that tokens meet in products, and only where a person asked for it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from penstock.bits import Bits
from penstock.quant.grouped import Grouped


@dataclass(frozen=True, slots=True)
class Packing:
    """Formats of the decoder layers' matrices, of the LM head and of KV; None leaves them as they are.

    Embeddings, norms, biases, routers and matrices that stay resident are never packed, but for an embedding that is
    tied to the LM head. own: what a checkpoint has packed already stays so, in formats that can run.
    """

    weights: Grouped | None = None
    head: Grouped | None = None
    own: bool = False
    kv: Grouped | None = None

    @property
    def name(self) -> str:
        """``int4g64``, ``int4g64+head-int8g64``, ``own``, ``kv-int4g64``; empty where nothing is packed."""
        said = {"": self.weights, "head-": self.head, "kv-": self.kv}
        parts = [f"{what}{form.name}" for what, form in said.items() if form]
        return "+".join(parts + ["own"] * self.own)

    @classmethod
    def named(cls, name: str) -> "Packing | None":
        """The packing of that name; None where it is none's."""
        parts = name.split("+")

        weights = next((found for part in parts if (found := Grouped.named(part))), None)
        head, kv = (
            next((Grouped.named(part.removeprefix(what)) for part in parts if part.startswith(what)), None)
            for what in ("head-", "kv-")
        )
        made = cls(weights, head, "own" in parts, kv)
        return made if name and made.name == name else None

    @property
    def bits(self) -> Mapping[str, int | None]:
        """What a person would have asked for to get it, by flag; None where that is left as it is."""
        forms = {"weight_bits": self.weights, "lm_head_bits": self.head, "kv_bits": self.kv}
        said = {name: form.bits if form else None for name, form in forms.items()}
        return said if self.weights or self.own else {**said, "weight_bits": 16}

    def rounded_plainly(self) -> "Packing":
        """The same formats, each group rounded between its least and its largest element."""
        weights, head = (form and replace(form, plain=True) for form in (self.weights, self.head))
        return Packing(weights, head, self.own, self.kv)

    def forms(self, model: Any, layers: str | None) -> Mapping[str, Grouped]:
        """The format of each matrix that is packed, by its parameter's name. layers: the name of the decoder's list."""
        experts = [module for module in model.modules() if holds_experts(module)]
        routed = {int(module.num_experts) for module in experts}
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        forms: dict[str, Grouped] = {}
        for name, module in model.named_modules():
            inside = layers is not None and name.startswith(f"{layers}.")
            if module is head and self.head is not None:
                forms[f"{name}.weight"] = self.head
            elif inside and self.weights is not None:
                if holds_experts(module):
                    stacked = [n for n, p in module._parameters.items() if p is not None and p.dim() > 2]
                    forms |= {f"{name}.{n}": self.weights for n in stacked}
                elif isinstance(module, nn.Linear | Conv1D) and _outputs(module) not in routed:
                    forms[f"{name}.weight"] = self.weights
        return forms


def packing_of(bits: Bits) -> Packing | None:
    """The packing that ``--weight-bits``, ``--lm-head-bits`` and ``--kv-bits`` ask for; None where none is fixed.

    16 bits are no packing, not the checkpoint's own either.
    """
    if all(said is None for said in bits.fixed.values()):
        return None
    weights, head, kv = (_form(said) for said in bits.fixed.values())
    return Packing(weights, head, bits.weight_bits is None, kv)


def _form(bits: int | None) -> Grouped | None:
    return None if bits in (None, 16) else Grouped(int(bits))


def holds_experts(module: nn.Module) -> bool:
    """Whether a module's matrices are stacks of experts, as transformers' experts interface has them."""
    return hasattr(module, "num_experts") and hasattr(module, "is_transposed")


def _outputs(module: nn.Linear | Conv1D) -> int:
    return int(module.out_features) if isinstance(module, nn.Linear) else int(module.nf)
