"""In how many bits weights, the LM head and KV are kept: what a person fixed, and what is left to the planner."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from os import PathLike
from typing import Any, Literal

from penstock.errors import UserError
from penstock.plan.types import Asked

AskedBits = int | Literal["auto"] | None

_NUMBERS = (4, 8, 16)
_TOLD = {"weight_bits": "weights", "lm_head_bits": "the LM head", "kv_bits": "KV"}


@dataclass(frozen=True, slots=True)
class Bits:
    """4 or 8 pack, 16 does not, and None leaves what a checkpoint has packed as it is too.

    free: by field, the bits that the planner may choose besides None. Raises UserError for another number.
    """

    weight_bits: int | None = None
    lm_head_bits: int | None = None
    kv_bits: int | None = None
    free: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, bits in self.fixed.items():
            check_bits(bits, f"--{name.replace('_', '-')}", auto=name != "lm_head_bits")

    @property
    def fixed(self) -> dict[str, int | None]:
        """The bits by field."""
        return {"weight_bits": self.weight_bits, "lm_head_bits": self.lm_head_bits, "kv_bits": self.kv_bits}

    def settled(self, chosen: Mapping[str, int | None]) -> "Bits":
        """With what was left to the planner as it is in ``chosen``, which may say more."""
        return replace(self, **{name: chosen[name] for name in self.free}, free={})

    def choices(self) -> Iterator["Bits"]:
        """All that the planner may choose of, nothing packed first and the fewest bits last."""
        for chosen in product(*((None, *numbers) for numbers in self.free.values())):
            yield self.settled(dict(zip(self.free, chosen, strict=True)))

    def packs(self, names: Iterable[str]) -> bool:
        """Whether any of these fields packs what it is about."""
        return any(self.fixed[name] is not None for name in names)

    def said(self, names: Iterable[str]) -> str:
        """Some of the fields in words: ``weights in 8 bits and KV as before``."""
        bits = self.fixed
        told = {name: "as before" if bits[name] is None else f"in {bits[name]} bits" for name in names}
        return " and ".join(f"{_TOLD[name]} {how}" for name, how in told.items())


def asked_bits(weight_bits: AskedBits, lm_head_bits: int | None, kv_bits: AskedBits, allow_4bit: bool = False) -> Bits:
    """The bits that keywords say, ``auto`` left to the planner: 8 freely, and 4 where that is allowed.

    Raises UserError for what are none, and where nothing is left that 4 bits could be allowed for.
    """
    asked = {"weight_bits": _number(weight_bits), "kv_bits": _number(kv_bits)}
    free = [name for name, bits in asked.items() if bits == "auto"]
    if allow_4bit and not free:
        raise UserError("--allow-4bit has a say with --weight-bits auto or --kv-bits auto: add one")
    fixed = {name: bits for name, bits in asked.items() if bits != "auto"}
    return Bits(**fixed, lm_head_bits=_number(lm_head_bits), free=dict.fromkeys(free, (8, 4) if allow_4bit else (8,)))


def _number(bits: Any) -> Any:
    """Bits that were written as a text, as a number."""
    return int(bits) if isinstance(bits, str) and bits.isdecimal() else bits


def check_bits(bits: object, flag: str, *, auto: bool) -> None:
    """Raise UserError for a number of bits that is none; auto: whether it may be left to the planner."""
    if bits is not None and (type(bits) is not int or bits not in _NUMBERS):
        raise UserError(f"{flag} {bits}: give {'4, 8, 16 or auto' if auto else '4, 8 or 16'}")


def check_planned(bits: Bits, asked: Asked, plan: str | PathLike[str] | None) -> None:
    """Raise UserError where bits are left to a planner that has no say: a plan, or all that it chooses, is given."""
    if not bits.free:
        return
    if plan is not None:
        raise UserError(f"--plan {plan} fixes how weights and KV are packed: leave auto out, or plan again with it")
    if asked.is_given:
        flags = " ".join(f"--{name.replace('_', '-')} auto" for name in bits.free)
        raise UserError(
            f"{flags}: weights, KV and batch shape are all given, so nothing is planned that could choose; "
            "give 4, 8 or 16, or leave one of them out"
        )
