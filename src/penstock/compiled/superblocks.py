"""ggml's superblocks as kernels read them: 256 elements, of which each 32 or 16 have a scale of a few bits."""

from llvmlite import ir

from penstock.compiled.record import Record, Table
from penstock.compiled.vectors import Emitter
from penstock.quant.rows import BLOCK

_BYTES = ir.VectorType(ir.IntType(8), BLOCK)  # where codes of a block are put together: a quarter of their vectors
_SIXTEEN = 16  # numbers that a superblock has, whatever the layout


class _Superblock(Record):
    """Sixteen numbers are decoded at once, when it is made; each then meets its elements from all lanes of a vector."""

    def numbers(self, codes: ir.Value, factors: ir.Value) -> ir.Value:
        """Sixteen bytes as floats, times factors."""
        builder, floats = self.builder, ir.VectorType(ir.FloatType(), _SIXTEEN)
        return builder.fmul(builder.sitofp(codes, floats), factors)

    def spread(self, numbers: ir.Value, index: int) -> ir.Value:
        """One number in all lanes."""
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.emitter.lanes), [index] * self.emitter.lanes)
        return self.builder.shuffle_vector(numbers, numbers, mask)

    def load(self, at: int, kind: ir.Type) -> ir.Value:
        """What lies ``at`` bytes into the superblock."""
        place = self.builder.inttoptr(self.emitter.at(self.address, (at, 1)), kind.as_pointer())
        return self.builder.load(place, typ=kind, align=1)

    def bits(self, stored: ir.Value, first: int, number: int, to: int = 0) -> ir.Value:
        """So many bits of each byte from bit ``first`` on, moved to bit ``to``."""
        builder = self.builder
        by = ir.Constant(_BYTES, [abs(first - to)] * BLOCK)
        moved = builder.lshr(stored, by) if first >= to else builder.shl(stored, by)
        return builder.and_(moved, ir.Constant(_BYTES, [(1 << number) - 1 << to] * BLOCK))

    def split(self, codes: ir.Value, signed: bool) -> list[ir.Value]:
        """The bytes of a block as vectors of floats."""
        builder, lanes = self.builder, self.emitter.lanes
        index, wide = ir.VectorType(ir.IntType(32), lanes), ir.VectorType(ir.IntType(32), lanes)
        extend = builder.sext if signed else builder.zext
        parts = [
            builder.shuffle_vector(codes, codes, ir.Constant(index, list(range(first, first + lanes))))
            for first in range(0, BLOCK, lanes)
        ]
        return [self.floats(extend(part, wide)) for part in parts]


class _ScalesAndMinimums(_Superblock):
    """q4_k and q5_k: scale · s · code - minimum · m, where s and m are those of 32 elements, in six bits.

    Their twelve bytes are three words: the low six bits of the first four s, of the first four m, and the low four bits
    of all others, whose high two are the highest bits of the first eight bytes.
    """

    def __init__(self, emitter: Emitter, address: ir.Value) -> None:
        super().__init__(emitter, address)
        builder, word = self.builder, ir.IntType(32)
        words = ir.VectorType(word, 4)
        stored = self.load(4, words)  # a word more than there are

        def taken(places: list[int], shifts: list[int], masks: list[int]) -> ir.Value:
            found = builder.shuffle_vector(stored, stored, ir.Constant(words, places))
            return builder.and_(builder.lshr(found, ir.Constant(words, shifts)), ir.Constant(words, masks))

        low, high, four = 0x3F3F3F3F, 0x30303030, 0x0F0F0F0F
        first = taken([0, 0, 1, 1], [0, 2, 0, 2], [low, high, low, high])
        codes = builder.or_(first, taken([2, 2, 2, 2], [0, 0, 0, 4], [0, four, 0, four]))
        halves = builder.fpext(self.load(0, ir.VectorType(ir.HalfType(), 2)), ir.VectorType(ir.FloatType(), 2))
        index = ir.VectorType(word, _SIXTEEN)
        factors = builder.shuffle_vector(halves, halves, ir.Constant(index, [0] * 8 + [1] * 8))
        bytes_ = builder.bitcast(codes, ir.VectorType(ir.IntType(8), _SIXTEEN))
        self._numbers = self.numbers(builder.zext(bytes_, index), factors)

    def elements(self, codes: ir.Value, index: int) -> ir.Value:
        """Of codes of a block, as floats."""
        scale, minimum = self.spread(self._numbers, index), self.spread(self._numbers, index + 8)
        return self.builder.fsub(self.scaled(codes, scale), minimum, flags=("contract",))


class FourBits(_ScalesAndMinimums):
    """q4_k: of 64 elements, byte j holds code j in its low half and code j + 32 in its high half."""

    def block(self, index: ir.Value | int) -> list[ir.Value]:
        table = Table(self.emitter, lambda codes: self.elements(codes, index))
        codes = self.codes(self.emitter.at(self.address, (16 + index // 2 * BLOCK, 1)), BLOCK)
        return table.high(codes) if index % 2 else table.low(codes)


class FiveBits(_ScalesAndMinimums):
    """q5_k: as q4_k, with the fifth bits of elements j, j + 32, … of the superblock in byte j of 32 before."""

    def __init__(self, emitter: Emitter, address: ir.Value) -> None:
        super().__init__(emitter, address)
        self._fifths = self.load(16, _BYTES)

    def block(self, index: ir.Value | int) -> list[ir.Value]:
        fours = self.bits(self.load(48 + index // 2 * BLOCK, _BYTES), index % 2 * 4, 4)
        codes = self.builder.or_(fours, self.bits(self._fifths, index, 1, to=4))
        return [self.elements(part, index) for part in self.split(codes, signed=False)]


class SixBits(_Superblock):
    """q6_k: scale · s · (code - 32), where s is that of 16 elements, in eight bits with a sign.

    Of 128 elements, byte j of 64 holds the low four bits of codes j and j + 64, and byte j of 32 the high two bits of
    codes j, j + 32, j + 64 and j + 96.
    """

    def __init__(self, emitter: Emitter, address: ir.Value) -> None:
        super().__init__(emitter, address)
        floats, eight = ir.VectorType(ir.FloatType(), _SIXTEEN), ir.VectorType(ir.IntType(8), _SIXTEEN)
        scale = self.builder.fpext(self.load(208, ir.HalfType()), ir.FloatType())
        first = self.builder.insert_element(ir.Constant(floats, ir.Undefined), scale, ir.IntType(32)(0))
        index = ir.VectorType(ir.IntType(32), _SIXTEEN)
        scales = self.builder.shuffle_vector(first, first, ir.Constant(index, [0] * _SIXTEEN))
        self._scales = self.numbers(self.builder.sext(self.load(192, eight), index), scales)

    def block(self, index: ir.Value | int) -> list[ir.Value]:
        builder, (half, quarter) = self.builder, divmod(index, 4)
        fours = self.bits(self.load(64 * half + quarter % 2 * BLOCK, _BYTES), quarter // 2 * 4, 4)
        twos = self.bits(self.load(128 + half * BLOCK, _BYTES), quarter * 2, 2, to=4)
        codes = builder.sub(builder.or_(fours, twos), ir.Constant(_BYTES, [32] * BLOCK))
        parts = self.split(codes, signed=True)
        return [
            self.scaled(part, self.spread(self._scales, 2 * index + 2 * at // len(parts)))
            for at, part in enumerate(parts)
        ]
