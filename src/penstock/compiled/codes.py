"""Vectors of elements from packed rows, made in registers just before they are used."""

from abc import ABC, abstractmethod
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from penstock.compiled.vectors import LANES, Emitter
from penstock.quant.forms import LAYOUTS, Form
from penstock.quant.ggml import Ggml
from penstock.quant.grouped import BLOCK

VECTORS = BLOCK // LANES  # of a block
_LOOKED_UP = 16  # lanes of a vector that a table of all 4-bit codes fits into


def layout(number: Any) -> Form:
    """The format that a tuple stands for in a kernel's signature: it is one longer than the format's number."""
    form: Form = LAYOUTS[number.count - 1]
    return form


class Record(ABC):
    """Emits the elements of one group of a row, of which ``address`` is that of its record."""

    def __init__(self, emitter: Emitter, form: Form, address: ir.Value) -> None:
        self.emitter, self.builder, self.form = emitter, emitter.builder, form
        self._codes = emitter.at(address, (1, form.parameter_bytes))
        self.take(address)
        self._table: ir.Value | None = None
        if form.bits == 4 and emitter.lanes == _LOOKED_UP:
            self._table = self.element(ir.Constant(emitter.float, [float(code) for code in range(_LOOKED_UP)]))

    @abstractmethod
    def take(self, address: ir.Value) -> None:
        """Load what the group's elements share."""

    @abstractmethod
    def element(self, code: ir.Value) -> ir.Value:
        """Elements of codes, as vectors of floats."""

    def block(self, index: ir.Value | int) -> list[ir.Value]:
        """The elements of a block of the group, in order, as vectors."""
        builder, lanes, bits = self.builder, self.emitter.lanes, self.form.bits
        codes = self.emitter.at(self._codes, (index, BLOCK * bits // 8))
        kind, wide = ir.VectorType(ir.IntType(8), lanes), ir.VectorType(ir.IntType(32), lanes)
        extend = builder.sext if isinstance(self.form, Ggml) and bits == 8 else builder.zext
        loaded = []
        for first in range(0, BLOCK * bits // 8, lanes):
            place = builder.inttoptr(self.emitter.at(codes, (first, 1)), kind.as_pointer())
            loaded.append(extend(builder.load(place, typ=kind, align=1), wide))
        if bits == 8:
            return [self.element(builder.sitofp(code, self.emitter.float)) for code in loaded]
        high = [builder.lshr(code, ir.Constant(wide, [4] * lanes)) for code in loaded]
        return [self._four_bit(code) for code in loaded + high]

    def _four_bit(self, code: ir.Value) -> ir.Value:
        """Elements of codes in the low four bits; what stands above them the table does not look at."""
        builder, lanes = self.builder, self.emitter.lanes
        if self._table is None:
            low = builder.and_(code, ir.Constant(code.type, [15] * lanes))
            return self.element(builder.sitofp(low, self.emitter.float))
        kind = ir.FunctionType(self.emitter.float, [self.emitter.float, code.type])
        look_up = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.permvar.sf.512")
        return builder.call(look_up, [self._table, code])


class _Grouped(Record):
    """minimum + scale · code, both bfloat16: halves of one word."""

    def take(self, address: ir.Value) -> None:
        builder, word = self.builder, ir.IntType(32)
        pair = builder.load(builder.inttoptr(address, word.as_pointer()), typ=word, align=1)
        scale = builder.bitcast(builder.shl(pair, word(16)), ir.FloatType())
        minimum = builder.bitcast(builder.and_(pair, word(0xFFFF0000)), ir.FloatType())
        self._scale, self._minimum = self.emitter.spread(scale), self.emitter.spread(minimum)

    def element(self, code: ir.Value) -> ir.Value:
        product = self.builder.fmul(code, self._scale, flags=("contract",))
        return self.builder.fadd(product, self._minimum, flags=("contract",))


class _Ggml(Record):
    """scale · (code - offset), or scale · code + minimum, in half precision."""

    def take(self, address: ir.Value) -> None:
        self._scale = self._half(address, 0)
        self._minimum = self._half(address, 1) if self.form.parameter_bytes == 4 else None

    def element(self, code: ir.Value) -> ir.Value:
        builder = self.builder
        if self.form.bits == 4 and self._minimum is None:
            code = builder.fsub(code, ir.Constant(code.type, [8.0] * self.emitter.lanes))
        product = builder.fmul(code, self._scale, flags=("contract",))
        return product if self._minimum is None else builder.fadd(product, self._minimum, flags=("contract",))

    def _half(self, address: ir.Value, index: int) -> ir.Value:
        builder, half = self.builder, ir.HalfType()
        place = builder.inttoptr(self.emitter.at(address, (index, 2)), half.as_pointer())
        return self.emitter.spread(builder.fpext(builder.load(place, typ=half, align=1), ir.FloatType()))


def record(emitter: Emitter, form: Form, address: ir.Value) -> Record:
    """The record at an address of a row in that format."""
    kind = _Ggml if isinstance(form, Ggml) else _Grouped
    return kind(emitter, form, address)
