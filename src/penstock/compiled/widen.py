"""Stored elements made float32: a run of a row at a time, by vectors."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from penstock.compiled.codes import layout, record
from penstock.compiled.record import Record
from penstock.compiled.vectors import LANES, Emitter, Integer, element_bytes, pieces
from penstock.quant.forms import Form
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
            _unpack(builder, layout(form), row, first, count, target)
            return context.get_dummy_value()
        source = single.at(row, (first, element_bytes(kind)))
        for step, k in pieces(builder, count, (LANES, 1)):
            emitter = single if step == 1 else wide
            value = emitter.load(single.at(source, (k, element_bytes(kind))), kind)
            emitter.store(value, single.at(target, (k, 4)))
        return context.get_dummy_value()

    return types.void(stored, form, *[Integer] * 4), emit


def _unpack(
    builder: ir.IRBuilder, form: Form, row: ir.Value, first: ir.Value, count: ir.Value, target: ir.Value
) -> None:
    """Emit loops over the whole groups, and over the blocks of the one that is left."""
    wide, single = Emitter(builder, LANES), Emitter(builder, 1)
    blocks, size = form.group // BLOCK, ir.Constant(count.type, form.group)
    records = single.at(row, (builder.udiv(first, size), form.record_bytes))
    whole = builder.udiv(count, size)

    def write(group: Record, index: ir.Value | int, place: ir.Value) -> None:
        for v, value in enumerate(group.block(index)):
            wide.store(value, single.at(place, (v, 4 * LANES)))

    with cgutils.for_range(builder, whole) as loop:
        group = record(wide, form, single.at(records, (loop.index, form.record_bytes)))
        for block in range(blocks):
            write(group, block, single.at(target, (loop.index, 4 * form.group), (block, 4 * BLOCK)))
    rest = builder.sub(count, builder.mul(whole, size))
    left = builder.udiv(builder.add(rest, ir.Constant(rest.type, BLOCK - 1)), ir.Constant(rest.type, BLOCK))
    with cgutils.for_range(builder, left) as loop:
        group = record(wide, form, single.at(records, (whole, form.record_bytes)))
        write(group, loop.index, single.at(target, (whole, 4 * form.group), (loop.index, 4 * BLOCK)))
