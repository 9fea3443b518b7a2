"""What layouts of packed rows have in common: numbers and codes out of a record's bytes, as vectors in registers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llvmlite import ir
from numba.core import cgutils

from penstock.compiled.vectors import LANES, Emitter
from penstock.quant.forms import Form
from penstock.quant.rows import BLOCK

VECTORS = BLOCK // LANES  # of a block
_LOOKED_UP = 16  # lanes of a vector that a table of all 4-bit codes fits into


@dataclass(frozen=True, slots=True)
class Sixteen:
    """Elements of 16 bits, by themselves: a format as packed ones are, of which a row is whole blocks.

    record: how numba calls what they travel as (``vectors.STORED``).
    """

    record: str
    group: int = BLOCK
    record_bytes: int = 2 * BLOCK
    cut_short: bool = False


class Record:
    """Emits the elements of one record of a row, of which ``address`` is the place.

    A layout derives from it: made, it emits what the record's blocks share, and ``block`` the rest.
    """

    in_bfloat16 = False  # whether that holds every element

    def __init__(self, emitter: Emitter, address: ir.Value) -> None:
        self.emitter, self.builder, self.address = emitter, emitter.builder, address

    def block(self, index: ir.Value | int) -> list[ir.Value]:
        """The elements of a block of the record, in order, as vectors."""
        raise NotImplementedError  # each format's own

    def codes(self, address: ir.Value, count: int, signed: bool = False) -> list[ir.Value]:
        """So many bytes from an address on, as vectors of 32-bit integers."""
        builder, lanes = self.builder, self.emitter.lanes
        kind, wide = ir.VectorType(ir.IntType(8), lanes), ir.VectorType(ir.IntType(32), lanes)
        extend = builder.sext if signed else builder.zext
        found = []
        for first in range(0, count, lanes):
            place = builder.inttoptr(self.emitter.at(address, (first, 1)), kind.as_pointer())
            found.append(extend(builder.load(place, typ=kind, align=1), wide))
        return found

    def half(self, at: int) -> ir.Value:
        """The number in half precision ``at`` bytes into the record, in all lanes."""
        builder, half = self.builder, ir.HalfType()
        place = builder.inttoptr(self.emitter.at(self.address, (at, 1)), half.as_pointer())
        return self.emitter.spread(builder.fpext(builder.load(place, typ=half, align=1), ir.FloatType()))

    def halves(self, at: int) -> tuple[ir.Value, ir.Value]:
        """Two such numbers, each in all lanes; spread as one word, which loads do by themselves."""
        builder, lanes, word = self.builder, self.emitter.lanes, ir.IntType(32)
        place = builder.inttoptr(self.emitter.at(self.address, (at, 1)), word.as_pointer())
        pair = builder.load(place, typ=word, align=1)
        words, index = ir.VectorType(word, lanes // 2), ir.VectorType(word, lanes)
        first = builder.insert_element(ir.Constant(words, ir.Undefined), pair, word(0))
        spread = builder.shuffle_vector(first, ir.Constant(words, ir.Undefined), ir.Constant(words, [0] * (lanes // 2)))
        both = builder.fpext(builder.bitcast(spread, ir.VectorType(ir.HalfType(), lanes)), self.emitter.float)
        one, other = (
            builder.shuffle_vector(both, both, ir.Constant(index, [lane // 2 * 2 + side for lane in range(lanes)]))
            for side in (0, 1)
        )
        return one, other

    def floats(self, codes: ir.Value) -> ir.Value:
        """Codes as floats."""
        return self.builder.sitofp(codes, self.emitter.float)

    def scaled(self, codes: ir.Value, scale: ir.Value, minimum: ir.Value | None = None) -> ir.Value:
        """scale · code, or scale · code + minimum; of floats."""
        product = self.builder.fmul(codes, scale, flags=("contract",))
        return product if minimum is None else self.builder.fadd(product, minimum, flags=("contract",))


def records(
    builder: ir.IRBuilder, form: Form | Sixteen, count: ir.Value
) -> Iterator[tuple[ir.Value, Sequence[ir.Value | int]]]:
    """The bodies of loops over so many elements of a row, as (record, which of its blocks): whole ones, and the last.

    A block of the last is whole for whoever reads it.
    """
    size = ir.Constant(count.type, form.group)
    whole = builder.udiv(count, size)
    with cgutils.for_range(builder, whole) as loop:
        yield loop.index, range(form.group // BLOCK)
    if form.cut_short:
        rest = builder.sub(count, builder.mul(whole, size))
        left = builder.udiv(builder.add(rest, ir.Constant(rest.type, BLOCK - 1)), ir.Constant(rest.type, BLOCK))
        with cgutils.for_range(builder, left) as loop:
            yield whole, [loop.index]


def records_of_rows(
    wide: Emitter, form: Form | Sixteen, row: ir.Value, stride: ir.Value, rows: int, columns: ir.Value
) -> Iterator[tuple[ir.Value, Sequence[ir.Value | int], list[ir.Value]]]:
    """As ``records``, of several rows at once: each body with the places of its record in all of them.

    row: address of the first, stride: bytes from row to row. As many rows that lie next are brought into the cache
    meanwhile: a row ends too soon for the processor to run ahead.
    """
    ahead = wide.builder.mul(stride, stride.type(rows))
    for number, blocks in records(wide.builder, form, columns):
        address = wide.at(row, (number, form.record_bytes))
        places = [wide.at(address, (r, stride)) for r in range(rows)]
        for place in places:
            wide.prefetch_all(wide.at(place, (ahead, 1)), form.record_bytes)
        yield number, blocks, places


class Table:
    """Elements of 4-bit codes, where ``element`` emits those of codes as floats.

    All sixteen are a table in a register where one has as many lanes, and codes are looked up by one instruction.
    """

    def __init__(self, emitter: Emitter, element: Callable[[ir.Value], ir.Value]) -> None:
        self._emitter, self._element = emitter, element
        self._elements: ir.Value | None = None
        if emitter.lanes == _LOOKED_UP:
            self._elements = element(ir.Constant(emitter.float, [float(code) for code in range(_LOOKED_UP)]))

    def of(self, codes: ir.Value) -> ir.Value:
        """Elements of the codes in the low four bits of integers; what stands above them does not matter."""
        builder = self._emitter.builder
        if self._elements is None:
            low = builder.and_(codes, ir.Constant(codes.type, [15] * self._emitter.lanes))
            return self._element(builder.sitofp(low, self._emitter.float))
        kind = ir.FunctionType(self._emitter.float, [self._emitter.float, codes.type])
        look_up = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.permvar.sf.512")
        return builder.call(look_up, [self._elements, codes])

    def low(self, codes: list[ir.Value]) -> list[ir.Value]:
        """Elements of the codes in the low halves of bytes."""
        return [self.of(each) for each in codes]

    def high(self, codes: list[ir.Value]) -> list[ir.Value]:
        """Elements of the codes in their high halves."""
        by = [4] * self._emitter.lanes
        return [self.of(self._emitter.builder.lshr(each, ir.Constant(each.type, by))) for each in codes]
