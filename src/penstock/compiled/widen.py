"""Stored elements made float32, or packed ones 16 bits wide: a run of a row at a time, by vectors."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.compiled.codes import layout, record
from penstock.compiled.record import records
from penstock.compiled.vectors import LANES, Emitter, Integer, element_bytes, pieces
from penstock.quant.forms import Form
from penstock.quant.rows import BLOCK


@intrinsic
def widen(context, stored, made, form, row, first, count, target):
    """Write ``count`` elements of a row, from its element ``first`` on, to a target; row and target are addresses.

    stored, made: arrays of their kinds (``vectors.STORED``). form: where the row is bytes, the format that they are
    packed in, as ``codes.layout`` takes it; ``first`` begins a group then, and the last block is written whole.
    """
    kind, wider = stored.dtype, made.dtype

    def emit(context, builder, signature, arguments):
        _, _, _, row, first, count, target = arguments
        wide, single = Emitter(builder, LANES), Emitter(builder, 1)
        if kind == types.uint8:
            _unpack(builder, layout(form), wider, row, first, count, target)
            return context.get_dummy_value()
        source = single.at(row, (first, element_bytes(kind)))
        for step, k in pieces(builder, count, (LANES, 1)):
            emitter = single if step == 1 else wide
            value = emitter.load(single.at(source, (k, element_bytes(kind))), kind)
            emitter.store(value, single.at(target, (k, element_bytes(wider))), wider)
        return context.get_dummy_value()

    return types.void(stored, made, form, *[Integer] * 4), emit


def _unpack(
    builder: ir.IRBuilder,
    form: Form,
    made: types.Type,
    row: ir.Value,
    first: ir.Value,
    count: ir.Value,
    target: ir.Value,
) -> None:
    """Emit loops over records; ``first`` begins one."""
    nbytes = element_bytes(made)
    wide, single = Emitter(builder, LANES), Emitter(builder, 1)
    start = single.at(row, (builder.udiv(first, ir.Constant(first.type, form.group)), form.record_bytes))
    for number, blocks in records(builder, form, count):
        found = record(wide, form, single.at(start, (number, form.record_bytes)))
        for block in blocks:
            place = single.at(target, (number, nbytes * form.group), (block, nbytes * BLOCK))
            for v, value in enumerate(found.block(block)):
                wide.store(value, single.at(place, (v, nbytes * LANES)), made, found.in_bfloat16)
