"""Which dtypes a run stores, computes and keeps KV in, and what to say about it."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import torch

from penstock.errors import UserError
from penstock.model.packing import Packing

_SIXTEEN = ("bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Precision:
    """stored: weights in files and slots. compute: activations. kv: the KV cache. note: what a person should know.

    packing: which weights take fewer bits than ``stored`` has.
    """

    stored: torch.dtype
    compute: torch.dtype
    kv: torch.dtype
    note: str | None = None
    packing: Packing = field(default_factory=Packing)

    @property
    def name(self) -> str:
        """What ``choose`` makes the same of on any machine: one dtype, or those of weights, products and KV; and what
        is packed."""
        names = [str(dtype).removeprefix("torch.") for dtype in (self.stored, self.compute, self.kv)]
        dtypes = names[0] if len(set(names)) == 1 else "/".join(names)
        return f"{dtypes}+{self.packing.name}" if self.packing.name else dtypes

    @staticmethod
    def again(name: str) -> str:
        """What ``choose`` is asked for the precision of that name: of one dtype alone, that nothing else is packed."""
        return name if "/" in name or "+" in name else "/".join([name] * 3)

    @staticmethod
    def packing_in(name: str) -> Packing:
        """What the precision of that name packs."""
        return Packing.named(name.partition("+")[2]) or Packing()


def choose(
    asked: str,
    checkpoint: str | None,
    device: str,
    cpu_bfloat16: bool,
    packing: Packing | None = None,
    packed_in: Collection[str] = (),
) -> Precision:
    """The dtypes for what ``--dtype`` asks, a checkpoint's own dtype (None: it has none) and ``cuda`` or ``cpu``.

    asked: also a ``Precision.name``, which a job that goes on brings with it. packing: what is asked to be packed.
    packed_in: where the checkpoint's matrices are packed already, the dtypes to compute in with which they stay so
    (``Source.packed_in``).

    Widening 16-bit weights to float32 is exact, so a float32 run streams the 16-bit bytes as they are.
    """
    asked, _, stored_packing = asked.partition("+")
    if stored_packing and Packing.named(stored_packing) is None:
        raise UserError(f"--dtype {asked}+{stored_packing}: {stored_packing} is no packing")
    packing = packing or Packing.named(stored_packing) or Packing(own=not stored_packing and "/" not in asked)
    dtypes = _dtypes(asked, checkpoint, device, cpu_bfloat16)
    packing = replace(packing, own=packing.own and str(dtypes.compute).removeprefix("torch.") in packed_in)
    return replace(dtypes, packing=packing, note=_packed(packing, dtypes) or dtypes.note)


def _dtypes(asked: str, checkpoint: str | None, device: str, cpu_bfloat16: bool) -> Precision:
    if len(parts := asked.split("/")) == 3 and all(part in ("float32", *_SIXTEEN) for part in parts):
        return Precision(*(getattr(torch, part) for part in parts))
    if asked not in ("auto", "float32", *_SIXTEEN):
        raise UserError(f"--dtype {asked}: there are auto, bfloat16, float16 and float32")
    own = checkpoint or "bfloat16"
    if asked != "auto":
        compute: torch.dtype = getattr(torch, asked)
        stored = getattr(torch, own) if asked == "float32" and own in _SIXTEEN and checkpoint else compute
        return Precision(stored, compute, compute)
    fast = device != "cuda" and cpu_bfloat16
    name = "bfloat16" if fast else own if own in _SIXTEEN else "float32"
    stored = getattr(torch, name)
    note = None if checkpoint == name else _converted(checkpoint, name, fast)
    if device == "cuda" or fast or name == "float32":
        return Precision(stored, stored, stored, note)
    kept = note or f"weights and KV stay {name}"
    told = f"{kept}; this CPU does not compute it: each product is computed in float32"
    return Precision(stored, torch.float32, stored, told)


def _packed(packing: Packing, dtypes: Precision) -> str | None:
    """What to say of packed weights; None where nothing is packed, or a person fixed dtypes and the file packs."""
    compute, kv = (str(dtype).removeprefix("torch.") for dtype in (dtypes.compute, dtypes.kv))
    form, said = packing.kv, f"KV is {kv}"
    if form is not None:
        said = f"KV is {kv} and packed in {form.bits} bits, but for each row's newest {form.group} tokens at most"
    rest = f", and products are computed in {compute}; {said}"
    if packing.weights is not None:
        return f"the layers' weights are packed in {packing.weights.bits} bits{rest}"
    if packing.own and dtypes.note:
        return f"weights stay packed as the file has them{rest}"
    if form is None:
        return None
    return f"{dtypes.note}; {said}" if dtypes.note else said


def _converted(checkpoint: str | None, name: str, fast: bool) -> str:
    if checkpoint is None:
        return f"weights are converted to {name}"
    return f"the checkpoint is {checkpoint}; it runs in {name}{', which this CPU computes faster' if fast else ''}"
