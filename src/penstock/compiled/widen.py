"""Stored elements made float32: a run of a row at a time, by vectors."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from penstock.compiled.codes import Record, layout
from penstock.compiled.vectors import LANES, Emitter, Integer, element_bytes, pieces
from penstock.quant.grouped import BLOCK


@intrinsic
def widen(context, stored, form, row, first, count, target):
    """Write ``count`` elements of a row, from its element ``first`` on, as float32; row and target are addresses.

    stored: an array of the row's kind. form: where that is bytes, the format that they are packed in, as
    ``codes.layout`` takes it; ``first`` begins a group then, and the last block is written whole.
    """
    kind = stored.dtype

    def emit(context, builder, signature, arguments):
        _, _, row, first, count, target = arguments
        wide, single = Emitter(builder, LANES), Emitter(builder, 1)
        if kind == types.uint8:
            packed = layout(form)
            block, in_group = (ir.Constant(count.type, size) for size in (BLOCK, packed.group // BLOCK))
            number = builder.udiv(builder.add(count, ir.Constant(count.type, BLOCK - 1)), block)
            before = builder.udiv(first, block)
            with cgutils.for_range(builder, number) as loop:
                index = builder.add(before, loop.index)
                address = single.at(row, (builder.udiv(index, in_group), packed.record_bytes))
                place = single.at(target, (loop.index, 4 * BLOCK))
                for v, value in enumerate(Record(wide, packed, address).block(builder.urem(index, in_group))):
                    wide.store(value, single.at(place, (v, 4 * LANES)))
            return context.get_dummy_value()
        source = single.at(row, (first, element_bytes(kind)))
        for step, k in pieces(builder, count, (LANES, 1)):
            emitter = single if step == 1 else wide
            value = emitter.load(single.at(source, (k, element_bytes(kind))), kind)
            emitter.store(value, single.at(target, (k, 4)))
        return context.get_dummy_value()

    return types.void(stored, form, *[Integer] * 4), emit
