"""Vectors of elements from packed rows, made in registers just before they are used."""

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


class Record:
    """Emits the elements of one group of a row, of which ``address`` is that of its record.

    An element is scale · code + minimum, or scale · code where there is no minimum, less eight scales with four bits.
    """

    def __init__(self, emitter: Emitter, form: Form, address: ir.Value) -> None:
        self._emitter, self._builder, self._form = emitter, emitter.builder, form
        self._codes = emitter.at(address, (1, form.parameter_bytes))
        self._minimum: ir.Value | None = None
        if form.parameter_bytes == 4:
            self._scale, self._minimum = self._pair(address)
        else:
            self._scale = self._half(address)
        self._table: ir.Value | None = None
        if form.bits == 4 and emitter.lanes == _LOOKED_UP:
            self._table = self._element(ir.Constant(emitter.float, [float(code) for code in range(_LOOKED_UP)]))

    def block(self, index: ir.Value | int) -> list[ir.Value]:
        """The elements of a block of the group, in order, as vectors."""
        builder, lanes, bits = self._builder, self._emitter.lanes, self._form.bits
        codes = self._emitter.at(self._codes, (index, BLOCK * bits // 8))
        kind, wide = ir.VectorType(ir.IntType(8), lanes), ir.VectorType(ir.IntType(32), lanes)
        extend = builder.sext if isinstance(self._form, Ggml) and bits == 8 else builder.zext
        loaded = []
        for first in range(0, BLOCK * bits // 8, lanes):
            place = builder.inttoptr(self._emitter.at(codes, (first, 1)), kind.as_pointer())
            loaded.append(extend(builder.load(place, typ=kind, align=1), wide))
        if bits == 8:
            return [self._element(builder.sitofp(code, self._emitter.float)) for code in loaded]
        high = [builder.lshr(code, ir.Constant(wide, [4] * lanes)) for code in loaded]
        return [self._four_bit(code) for code in loaded + high]

    def _four_bit(self, code: ir.Value) -> ir.Value:
        """Elements of codes in the low four bits; what stands above them the table does not look at."""
        builder, lanes = self._builder, self._emitter.lanes
        if self._table is None:
            low = builder.and_(code, ir.Constant(code.type, [15] * lanes))
            return self._element(builder.sitofp(low, self._emitter.float))
        kind = ir.FunctionType(self._emitter.float, [self._emitter.float, code.type])
        look_up = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.permvar.sf.512")
        return builder.call(look_up, [self._table, code])

    def _element(self, code: ir.Value) -> ir.Value:
        """Elements of codes, as vectors of floats."""
        builder = self._builder
        if self._form.bits == 4 and self._minimum is None:
            code = builder.fsub(code, ir.Constant(code.type, [8.0] * self._emitter.lanes))
        product = builder.fmul(code, self._scale, flags=("contract",))
        return product if self._minimum is None else builder.fadd(product, self._minimum, flags=("contract",))

    def _half(self, address: ir.Value) -> ir.Value:
        """A number in half precision, in all lanes."""
        builder, half = self._builder, ir.HalfType()
        place = builder.inttoptr(address, half.as_pointer())
        return self._emitter.spread(builder.fpext(builder.load(place, typ=half, align=1), ir.FloatType()))

    def _pair(self, address: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Two numbers in half precision, each in all lanes; spread as one word, which loads do by themselves."""
        builder, lanes, word = self._builder, self._emitter.lanes, ir.IntType(32)
        pair = builder.load(builder.inttoptr(address, word.as_pointer()), typ=word, align=1)
        words, index = ir.VectorType(word, lanes // 2), ir.VectorType(word, lanes)
        first = builder.insert_element(ir.Constant(words, ir.Undefined), pair, word(0))
        spread = builder.shuffle_vector(first, ir.Constant(words, ir.Undefined), ir.Constant(words, [0] * (lanes // 2)))
        halves = builder.bitcast(spread, ir.VectorType(ir.HalfType(), lanes))
        both = builder.fpext(halves, self._emitter.float)
        scale, minimum = (
            builder.shuffle_vector(both, both, ir.Constant(index, [lane // 2 * 2 + side for lane in range(lanes)]))
            for side in (0, 1)
        )
        return scale, minimum
