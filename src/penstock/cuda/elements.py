"""Elements of packed rows as Triton's kernels read them: one function for each way that a record lies.

Each takes addresses of records and places of elements within one, broadcast against each other, and gives float32:
what ``quant.elements`` makes of the same bytes, to the bit, since all products in them are exact and a sum is rounded
once, fused or not. Every address and place has to be one that is there. All is read by bytes, for rows begin anywhere.
"""

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from penstock.quant import mxfp4, rows

_BLOCK = tl.constexpr(rows.BLOCK)
_LANE = tl.constexpr(rows.BLOCK // 2)  # bytes of a block of four-bit codes
_EXPONENT_SHIFT, _SMALLEST = tl.constexpr(mxfp4.EXPONENT_SHIFT), tl.constexpr(mxfp4.SMALLEST)


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """float32 in another dtype: to nearest, ties to even."""
    if dtype == tl.bfloat16:
        return (_bfloat16_bits(value) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return value.to(dtype)


@triton.jit
def _bfloat16_bits(value):
    """Of the float32 nearest to one among those of bfloat16: by integers, for Triton's interpreter cuts, not rounds."""
    bits = value.to(tl.uint32, bitcast=True)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return tl.where(value == value, nearest, bits)


@triton.jit
def _byte(at):
    return tl.load(at).to(tl.int32)


@triton.jit
def _signed(at):
    """A byte with a sign."""
    return tl.load(at).to(tl.int8, bitcast=True).to(tl.float32)


@triton.jit
def _half(at):
    """A number in half precision."""
    return (_byte(at) | _byte(at + 1) << 8).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _nibble(codes, place):
    """Of each block, codes in the low halves of its bytes and then those in the high ones."""
    return (_byte(codes + place // _BLOCK * _LANE + place % _LANE) >> (place % _BLOCK // _LANE * 4)) & 15


@triton.jit
def _pair(codes, place):
    """Of each 32 bytes, codes in their low halves and then those in their high ones."""
    return (_byte(codes + place // (2 * _BLOCK) * _BLOCK + place % _BLOCK) >> (place // _BLOCK % 2 * 4)) & 15


@triton.jit
def _int4(at, place):
    return _half(at + 2) + _half(at) * _nibble(at + 4, place).to(tl.float32)


@triton.jit
def _int8(at, place):
    return _half(at + 2) + _half(at) * _byte(at + 4 + place).to(tl.float32)


@triton.jit
def _q4_0(at, place):
    return _half(at) * (_nibble(at + 2, place) - 8).to(tl.float32)


@triton.jit
def _q8_0(at, place):
    return _half(at) * _signed(at + 2 + place)


@triton.jit
def _q4_k(at, place):
    return _by_minimums(at, place, _pair(at + 16, place))


@triton.jit
def _q5_k(at, place):
    fifth = (_byte(at + 16 + place % _BLOCK) >> (place // _BLOCK)) & 1
    return _by_minimums(at, place, _pair(at + 48, place) | fifth << 4)


@triton.jit
def _by_minimums(at, place, code):
    """scale · s · code - minimum · m: numbers in six bits in twelve bytes, the last four of eight in two pieces."""
    part = place // _BLOCK
    numbers, later = at + 4 + part % 4, part >= 4
    low, middle, high = _byte(numbers), _byte(numbers + 4), _byte(numbers + 8)
    s = tl.where(later, high & 15 | low >> 6 << 4, low & 63)
    m = tl.where(later, high >> 4 | middle >> 6 << 4, middle & 63)
    return _half(at) * s.to(tl.float32) * code.to(tl.float32) - _half(at + 2) * m.to(tl.float32)


@triton.jit
def _q6_k(at, place):
    half = place // 128
    four = (_byte(at + half * 64 + place % 64) >> (place // 64 % 2 * 4)) & 15
    two = (_byte(at + 128 + half * 32 + place % 32) >> (place // 32 % 4 * 2)) & 3
    return _half(at + 208) * _signed(at + 192 + place // 16) * ((four | two << 4) - 32).to(tl.float32)


@triton.jit
def _fp8(at, place):
    """A code is read as half precision, which has the same exponents but for 2^8."""
    word = _byte(at) | _byte(at + 1) << 8 | _byte(at + 2) << 16 | _byte(at + 3) << 24
    code = _byte(at + 4 + place)
    half = ((code & 0x80) << 8 | (code & 0x7F) << 7).to(tl.uint16).to(tl.float16, bitcast=True)
    element = half.to(tl.float32) * 256.0 * word.to(tl.float32, bitcast=True)
    return _bfloat16_bits(element).to(tl.float32, bitcast=True)


@triton.jit
def _mxfp4(at, place):
    """A code is read as half precision, which has the same exponents but for 2^14."""
    scale = tl.maximum(_byte(at) << _EXPONENT_SHIFT, _SMALLEST).to(tl.float32, bitcast=True)
    code = _nibble(at + 1, place)
    half = ((code & 8) << 12 | (code & 7) << 9).to(tl.uint16).to(tl.float16, bitcast=True)
    return half.to(tl.float32) * 16384.0 * scale


RECORDS: Mapping[str, Any] = {
    "int4": _int4,
    "int8": _int8,
    "q4_0": _q4_0,
    "q4_1": _int4,
    "q8_0": _q8_0,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "fp8": _fp8,
    "mxfp4": _mxfp4,
}
