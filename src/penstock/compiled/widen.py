"""Stored elements made float32: a run of a row at a time, by vectors."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.compiled.codes import layout, record
from penstock.compiled.record import records
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
    """Emit loops over records; ``first`` begins one."""
    wide, single = Emitter(builder, LANES), Emitter(builder, 1)
    start = single.at(row, (builder.udiv(first, ir.Constant(first.type, form.group)), form.record_bytes))
    for number, blocks in records(builder, form, count):
        found = record(wide, form, single.at(start, (number, form.record_bytes)))
        for block in blocks:
            place = single.at(target, (number, 4 * form.group), (block, 4 * BLOCK))
            for v, value in enumerate(found.block(block)):
                wide.store(value, single.at(place, (v, 4 * LANES)))
