"""Packed rows as codes that bfloat16 holds: neighbours are multiplied in pairs, and their group's scale comes after.

One instruction (VDPBF16PS) multiplies 16 codes with 16 elements of a token and adds them up by twos, where unpacked
elements take two products and a scale each.
"""

import struct

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils

from penstock.compiled.record import Record, Sixteen
from penstock.compiled.small_floats import power_of_two
from penstock.compiled.vectors import Emitter
from penstock.quant.forms import Form
from penstock.quant.mxfp4 import ELEMENTS
from penstock.quant.rows import BLOCK

_NEEDED = ("avx512bf16", "avx512bw", "avx512vl")
_features = llvmlite.binding.get_host_cpu_features()
HERE = all(_features.get(name, False) for name in _NEEDED)  # whether this CPU multiplies so
SUMS = 8  # floats in a vector of sums
HALF = BLOCK // 2  # elements in a vector of pairs: the codes in the low, or the high, halves of a block's bytes


class _BFloat16(ir.Type):  # type: ignore[misc]  # llvmlite is untyped
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16)

    def __hash__(self) -> int:
        return hash(_BFloat16)


_WORDS, _PAIRS = ir.VectorType(ir.IntType(16), HALF), ir.VectorType(_BFloat16(), HALF)


def load_pairs(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """HALF elements of bfloat16 at an address."""
    return builder.load(builder.inttoptr(address, _PAIRS.as_pointer()), typ=_PAIRS, align=2)


def ones(builder: ir.IRBuilder) -> ir.Value:
    """HALF ones."""
    return builder.bitcast(_constant((1.0,) * HALF), _PAIRS)


def add_pairs(emitter: Emitter, sums: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """``sums`` plus the products of a and b, two neighbours to each."""
    kind = ir.FunctionType(emitter.float, [emitter.float, _PAIRS, _PAIRS])
    function = cgutils.get_or_insert_function(emitter.builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.256")
    found: ir.Value = emitter.builder.call(function, [sums, a, b])
    return found


class Coded(Record):
    """Emits the codes of one record: an element is scale · code + minimum, without either where that is None.

    has_minimum: whether that is one, which the sum of a token's elements meets.
    """

    has_minimum = False

    scale: ir.Value | None = None
    minimum: ir.Value | None = None

    def halves_of(self, index: ir.Value | int) -> tuple[ir.Value, ir.Value]:
        """The codes of a block of the record: its first HALF, and the others."""
        raise NotImplementedError  # each format's own


class _Sixteen(Coded):
    def halves_of(self, index: ir.Value | int) -> tuple[ir.Value, ir.Value]:
        first, second = (self.emitter.at(self.address, (index, 2 * BLOCK), (v, 2 * HALF)) for v in range(2))
        return load_pairs(self.builder, first), load_pairs(self.builder, second)


class _FourBits(Coded):
    """Codes of four bits after ``numbers`` bytes, which stand for ``elements``."""

    numbers: int
    elements: tuple[float, ...]

    def halves_of(self, index: ir.Value | int) -> tuple[ir.Value, ir.Value]:
        builder, stored = self.builder, ir.VectorType(ir.IntType(8), HALF)
        place = self.emitter.at(self.address, (self.numbers, 1), (index, BLOCK // 2))
        codes = builder.load(builder.inttoptr(place, stored.as_pointer()), typ=stored, align=1)
        words = builder.zext(codes, _WORDS)
        return self._of(words), self._of(builder.lshr(words, ir.Constant(_WORDS, [4] * HALF)))

    def _of(self, words: ir.Value) -> ir.Value:
        """Elements of the codes in the low four bits, of which alone the instruction takes notice."""
        kind = ir.FunctionType(_WORDS, [_WORDS, _WORDS])
        look_up = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.x86.avx512.permvar.hi.256")
        return self.builder.bitcast(self.builder.call(look_up, [_constant(self.elements), words]), _PAIRS)


class _ScaleAndMinimum4(_FourBits):
    has_minimum = True
    numbers, elements = 4, tuple(map(float, range(16)))

    def __init__(self, emitter: Emitter, address: ir.Value) -> None:
        super().__init__(emitter, address)
        self.scale, self.minimum = self.halves(0)


class _Scale4(_FourBits):
    numbers, elements = 2, tuple(code - 8.0 for code in range(16))

    def __init__(self, emitter: Emitter, address: ir.Value) -> None:
        super().__init__(emitter, address)
        self.scale = self.half(0)


class _Mxfp4(_FourBits):
    numbers, elements = 1, ELEMENTS

    def __init__(self, emitter: Emitter, address: ir.Value) -> None:
        super().__init__(emitter, address)
        self.scale = power_of_two(emitter, address)


_CODED: dict[str, type[Coded]] = {
    "uint16": _Sixteen,
    "int4": _ScaleAndMinimum4,
    "q4_0": _Scale4,
    "q4_1": _ScaleAndMinimum4,
    "mxfp4": _Mxfp4,
}


def in_pairs(record: str) -> bool:
    """Whether rows of such records are multiplied so on this CPU."""
    return HERE and record in _CODED


def has_minimum(record: str) -> bool:
    """Whether elements of such records, ``in_pairs``, have a minimum added."""
    return _CODED[record].has_minimum


def coded(emitter: Emitter, form: Form | Sixteen, address: ir.Value) -> Coded:
    """Emits the codes of one record of a row of that format; the emitter has SUMS lanes."""
    return _CODED[form.record](emitter, address)


def _constant(elements: tuple[float, ...]) -> ir.Constant:
    """The bits of HALF bfloat16 numbers."""
    return ir.Constant(_WORDS, [struct.unpack("<I", struct.pack("<f", x))[0] >> 16 for x in elements])
