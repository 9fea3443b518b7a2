"""Layouts of packed rows as kernels read them, one class each, found by their names."""

from typing import Any

from llvmlite import ir
from numba import types

from penstock.compiled import small_floats, superblocks
from penstock.compiled.record import VECTORS, Record, Sixteen, Table
from penstock.compiled.vectors import LANES, Emitter
from penstock.quant.forms import LAYOUTS, Form
from penstock.quant.rows import BLOCK


def layout(number: Any) -> Form:
    """The format that a tuple stands for in a kernel's signature: it is one longer than the format's number."""
    form: Form = LAYOUTS[number.count - 1]
    return form


def layout_of(stored: types.Array, number: Any) -> Form | Sixteen:
    """The format of an array's rows: that of the tuple where they are bytes."""
    return layout(number) if stored.dtype == types.uint8 else Sixteen(stored.dtype.name)


def record(emitter: Emitter, form: Form | Sixteen, address: ir.Value) -> Record:
    """Emits the elements of one record of a row of that format."""
    return _RECORDS[form.record](emitter, address)


class _Sixteen(Record):
    """Elements as they are, of 16 bits."""

    kind: types.Type

    def block(self, index: ir.Value | int) -> list[ir.Value]:
        places = [self.emitter.at(self.address, (index, 2 * BLOCK), (v, 2 * LANES)) for v in range(VECTORS)]
        return [self.emitter.load(place, self.kind) for place in places]


class _BFloat16(_Sixteen):
    kind = types.uint16


class _Float16(_Sixteen):
    kind = types.int16


class _ScaleAndMinimum4(Record):
    def __init__(self, emitter: Emitter, address: ir.Value) -> None:
        super().__init__(emitter, address)
        scale, minimum = self.halves(0)
        self._table = Table(emitter, lambda codes: self.scaled(codes, scale, minimum))

    def block(self, index: ir.Value | int) -> list[ir.Value]:
        found = self.codes(self.emitter.at(self.address, (4, 1), (index, BLOCK // 2)), BLOCK // 2)
        return self._table.low(found) + self._table.high(found)


class _ScaleAndMinimum8(Record):
    def __init__(self, emitter: Emitter, address: ir.Value) -> None:
        super().__init__(emitter, address)
        self._scale, self._minimum = self.halves(0)

    def block(self, index: ir.Value | int) -> list[ir.Value]:
        found = self.codes(self.emitter.at(self.address, (4, 1), (index, BLOCK)), BLOCK)
        return [self.scaled(self.floats(codes), self._scale, self._minimum) for codes in found]


class _Scale4(Record):
    """scale · (code - 8)."""

    def __init__(self, emitter: Emitter, address: ir.Value) -> None:
        super().__init__(emitter, address)
        scale, eight = self.half(0), ir.Constant(emitter.float, [8.0] * emitter.lanes)
        self._table = Table(emitter, lambda codes: self.scaled(self.builder.fsub(codes, eight), scale))

    def block(self, index: ir.Value | int) -> list[ir.Value]:
        found = self.codes(self.emitter.at(self.address, (2, 1), (index, BLOCK // 2)), BLOCK // 2)
        return self._table.low(found) + self._table.high(found)


class _Scale8(Record):
    """scale · code, which has a sign."""

    def __init__(self, emitter: Emitter, address: ir.Value) -> None:
        super().__init__(emitter, address)
        self._scale = self.half(0)

    def block(self, index: ir.Value | int) -> list[ir.Value]:
        found = self.codes(self.emitter.at(self.address, (2, 1), (index, BLOCK)), BLOCK, signed=True)
        return [self.scaled(self.floats(codes), self._scale) for codes in found]


_RECORDS: dict[str, type[Record]] = {
    "uint16": _BFloat16,
    "int16": _Float16,
    "int4": _ScaleAndMinimum4,
    "int8": _ScaleAndMinimum8,
    "q4_0": _Scale4,
    "q4_1": _ScaleAndMinimum4,
    "q8_0": _Scale8,
    "q4_k": superblocks.FourBits,
    "q5_k": superblocks.FiveBits,
    "q6_k": superblocks.SixBits,
    "fp8": small_floats.EightBits,
    "mxfp4": small_floats.FourBits,
}
