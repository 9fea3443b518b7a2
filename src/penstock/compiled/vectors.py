"""Vector instructions for compiled kernels: loads that widen, stores that round, products and transposes of vectors.

Loops that a compiler vectorises by itself keep no tile of accumulators in registers; these are for the tiles that must.
"""

from collections.abc import Iterator

import llvmlite.binding
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils

WIDE = llvmlite.binding.get_host_cpu_features().get("avx512f", False)  # what is absent is listed too, as False
LANES = 16 if WIDE else 8
LINE = 64  # bytes of a cache line, to which vectors are aligned

# Stored elements travel as integers of their size where numpy has no such type: uint16 holds bfloat16, int16 float16.
STORED = {torch.float32: torch.float32, torch.bfloat16: torch.uint16, torch.float16: torch.int16}
Integer = types.intp


def _float(lanes: int) -> ir.Type:
    return ir.FloatType() if lanes == 1 else ir.VectorType(ir.FloatType(), lanes)


class Emitter:
    """Emits loads, stores and products of ``lanes`` floats at a time; one lane is a plain float (ends of odd sizes)."""

    def __init__(self, builder: ir.IRBuilder, lanes: int) -> None:
        self.builder = builder
        self.lanes = lanes
        self.float = _float(lanes)

    def at(self, base: ir.Value, *terms: tuple[ir.Value | int, ir.Value | int]) -> ir.Value:
        """``base`` plus the sum of index × stride, in bytes."""
        for index, stride in terms:
            index, stride = (ir.Constant(base.type, x) if isinstance(x, int) else x for x in (index, stride))
            base = self.builder.add(base, self.builder.mul(index, stride))
        return base

    def load(self, address: ir.Value, kind: types.Type = types.float32) -> ir.Value:
        """Floats from what is stored at an address."""
        builder = self.builder
        element = {types.float32: ir.FloatType(), types.uint16: ir.IntType(16), types.int16: ir.HalfType()}[kind]
        stored = element if self.lanes == 1 else ir.VectorType(element, self.lanes)
        value = builder.load(builder.inttoptr(address, stored.as_pointer()), typ=stored, align=element_bytes(kind))
        if kind == types.float32:
            return value
        if kind == types.int16:
            return builder.fpext(value, self.float)
        words = self._word_type(32)
        return builder.bitcast(builder.shl(builder.zext(value, words), self._all(words, 16)), self.float)

    def store(
        self, value: ir.Value, address: ir.Value, kind: types.Type = types.float32, in_bfloat16: bool = False
    ) -> None:
        """Floats to an address, as what is stored there: rounded to the nearest, of two as near to the even one.

        in_bfloat16: that holds them as they are.
        """
        builder = self.builder
        if kind == types.int16:
            half = ir.HalfType()
            value = builder.fptrunc(value, half if self.lanes == 1 else ir.VectorType(half, self.lanes))
        elif kind == types.uint16:
            bits = builder.bitcast(value, self._word_type(32)) if in_bfloat16 else self.rounded(value)
            value = builder.trunc(builder.lshr(bits, self._all(bits.type, 16)), self._word_type(16))
        builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=element_bytes(kind))

    def rounded(self, value: ir.Value) -> ir.Value:
        """The bits of floats rounded to bfloat16, in the high halves of words; the low halves mean nothing."""
        builder, words = self.builder, self._word_type(32)
        bits = builder.bitcast(value, words)
        odd = builder.and_(builder.lshr(bits, self._all(words, 16)), self._all(words, 1))
        up = builder.add(builder.add(bits, self._all(words, 0x7FFF)), odd)
        return builder.select(builder.fcmp_unordered("uno", value, value), self._all(words, 0x7FC00000), up)

    def _word_type(self, bits: int) -> ir.Type:
        return ir.IntType(bits) if self.lanes == 1 else ir.VectorType(ir.IntType(bits), self.lanes)

    def _all(self, words: ir.Type, value: int) -> ir.Constant:
        return ir.Constant(words, value if self.lanes == 1 else [value] * self.lanes)

    def prefetch(self, address: ir.Value) -> None:
        """Begin to bring the cache line at an address into the second-level cache."""
        place, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place, flag, flag, flag])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        self.builder.call(function, [self.builder.inttoptr(address, place), flag(0), flag(2), flag(1)])

    def prefetch_all(self, address: ir.Value, count: int) -> None:
        """Begin to bring so many bytes: the line that each LINE of them begins in."""
        for first in range(0, count, LINE):
            self.prefetch(self.at(address, (first, 1)))

    def spread(self, scalar: ir.Value) -> ir.Value:
        """One float in all lanes."""
        if self.lanes == 1:
            return scalar
        vector = self.builder.insert_element(ir.Constant(self.float, ir.Undefined), scalar, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(vector, ir.Constant(self.float, ir.Undefined), zeros)

    def add_product(self, total: ir.Value, a: ir.Value, b: ir.Value) -> None:
        """``*total += a · b``."""
        product = self.builder.fmul(a, b, flags=("contract",))
        self.builder.store(self.builder.fadd(self.builder.load(total), product, flags=("contract",)), total)

    def lane_sums(self, vectors: list[ir.Value]) -> ir.Value:
        """A vector with the sum over the lanes of each of 1, 2 or 4 vectors: neighbours are added until one is left."""
        count = len(vectors)
        while len(vectors) > 1:
            vectors = [self._neighbours(a, b, self.lanes) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        [sums] = vectors
        while sums.type.count > count:
            sums = self._neighbours(sums, ir.Constant(sums.type, ir.Undefined), sums.type.count // 2)
        return sums

    def _neighbours(self, a: ir.Value, b: ir.Value, count: int) -> ir.Value:
        """The first ``count`` sums of neighbours in a and b, end to end."""
        index = ir.VectorType(ir.IntType(32), count)
        even, odd = (
            self.builder.shuffle_vector(a, b, ir.Constant(index, [2 * i + side for i in range(count)]))
            for side in (0, 1)
        )
        return self.builder.fadd(even, odd)

    def transposed(self, vectors: list[ir.Value]) -> list[ir.Value]:
        """As many vectors as they have lanes, rows made columns: neighbours swap at 1, 2, 4, … lanes."""
        index = ir.VectorType(ir.IntType(32), self.lanes)
        size = 1
        while size < self.lanes:
            low = [i if not i & size else i - size + self.lanes for i in range(self.lanes)]
            high = [i + size if not i & size else i + self.lanes for i in range(self.lanes)]
            for first in range(self.lanes):
                if not first & size:
                    a, b = vectors[first], vectors[first + size]
                    swapped = [self.builder.shuffle_vector(a, b, ir.Constant(index, mask)) for mask in (low, high)]
                    vectors[first], vectors[first + size] = swapped
            size *= 2
        return vectors

    def zero(self) -> ir.Value:
        """A local sum that starts at 0."""
        return self.local(ir.Constant(self.float, 0.0 if self.lanes == 1 else [0.0] * self.lanes))

    def local(self, value: ir.Value) -> ir.Value:
        """A local variable with a value; it ends up in a register."""
        variable = cgutils.alloca_once(self.builder, self.float)
        self.builder.store(value, variable)
        return variable


def element_bytes(kind: types.Type) -> int:
    """Bytes of one stored element."""
    return 4 if kind == types.float32 else 2


def pieces(builder: ir.IRBuilder, total: ir.Value, steps: tuple[int, ...]) -> Iterator[tuple[int, ir.Value]]:
    """For each step size, from large to 1: the body of a loop over what the larger ones left, as (step, index)."""
    start = ir.Constant(total.type, 0)
    for step in steps:
        size = ir.Constant(total.type, step)
        stop = builder.sub(total, builder.srem(total, size))
        with cgutils.for_range_slice(builder, start, stop, size, total.type) as (index, _):
            yield step, index
        start = stop
