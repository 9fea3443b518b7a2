"""Records of codes that are floats of a few bits themselves: fp8 and MXFP4."""

from llvmlite import ir

from penstock.compiled.record import Record, Table
from penstock.compiled.vectors import Emitter
from penstock.quant.mxfp4 import EXPONENT_SHIFT, SMALLEST
from penstock.quant.rows import BLOCK

_WORD = ir.IntType(32)
_HALF_BIAS, _HALF_MANTISSA = 15, 10  # of half precision, which holds all such floats: subnormal ones cost nothing there


class EightBits(Record):
    """scale · code, rounded to bfloat16; a code has a sign, four bits of exponent and three of mantissa."""

    in_bfloat16 = True

    def __init__(self, emitter: Emitter, address: ir.Value) -> None:
        super().__init__(emitter, address)
        place = self.builder.inttoptr(address, ir.FloatType().as_pointer())
        scale = self.builder.load(place, typ=ir.FloatType(), align=1)
        self._scale = emitter.spread(self.builder.fmul(scale, ir.FloatType()(_factor(4))))

    def block(self, index: ir.Value | int) -> list[ir.Value]:
        found = self.codes(self.emitter.at(self.address, (4, 1), (index, BLOCK)), BLOCK)
        return [self._rounded(self.builder.fmul(_halves(self.emitter, codes, 4, 3), self._scale)) for codes in found]

    def _rounded(self, value: ir.Value) -> ir.Value:
        """The nearest of bfloat16."""
        bits = self.emitter.rounded(value)
        return self.builder.bitcast(self.builder.and_(bits, _all(bits.type, 0xFFFF0000)), self.emitter.float)


class FourBits(Record):
    """2^(scale - 127) · code; a code has a sign, two bits of exponent and one of mantissa."""

    in_bfloat16 = True

    def __init__(self, emitter: Emitter, address: ir.Value) -> None:
        super().__init__(emitter, address)
        builder, scale = self.builder, power_of_two(emitter, address)

        def element(codes: ir.Value) -> ir.Value:
            whole = builder.fptosi(codes, ir.VectorType(_WORD, emitter.lanes))
            exact = builder.fmul(_halves(emitter, whole, 2, 1), _all(emitter.float, _factor(2)))
            return builder.fmul(exact, scale)

        self._table = Table(emitter, element)

    def block(self, index: ir.Value | int) -> list[ir.Value]:
        codes = self.codes(self.emitter.at(self.address, (1, 1), (index, BLOCK // 2)), BLOCK // 2)
        high = [self.builder.lshr(each, _all(each.type, 4)) for each in codes]
        return [self._table.of(each) for each in codes + high]


def power_of_two(emitter: Emitter, address: ir.Value) -> ir.Value:
    """2^(scale - 127) of the byte at an address, in all lanes."""
    builder, byte = emitter.builder, ir.IntType(8)
    stored = builder.load(builder.inttoptr(address, byte.as_pointer()), typ=byte, align=1)
    bits, least = builder.shl(builder.zext(stored, _WORD), _WORD(EXPONENT_SHIFT)), _WORD(SMALLEST)
    bits = builder.select(builder.icmp_unsigned("<", bits, least), least, bits)
    return emitter.spread(builder.bitcast(bits, ir.FloatType()))


def _halves(emitter: Emitter, codes: ir.Value, exponent: int, mantissa: int) -> ir.Value:
    """Codes of a sign, so many bits of exponent and of mantissa, read as half precision: too small by ``_factor``."""
    builder, lanes = emitter.builder, emitter.lanes
    short, bits = ir.VectorType(ir.IntType(16), lanes), exponent + mantissa
    stored = builder.trunc(codes, short)
    sign = builder.and_(builder.shl(stored, _all(short, 15 - bits)), _all(short, 1 << 15))
    shift = _HALF_MANTISSA - mantissa
    rest = builder.and_(builder.shl(stored, _all(short, shift)), _all(short, ((1 << bits) - 1) << shift))
    return builder.fpext(builder.bitcast(builder.or_(sign, rest), ir.VectorType(ir.HalfType(), lanes)), emitter.float)


def _factor(exponent: int) -> float:
    """By which floats of so many bits of exponent, read as halves, are too small."""
    return float(2.0 ** (_HALF_BIAS - (2 ** (exponent - 1) - 1)))


def _all(vector: ir.Type, value: float) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)
