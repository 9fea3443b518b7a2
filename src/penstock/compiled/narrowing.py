"""What was summed in float32, written as what a tensor holds."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.compiled.vectors import LANES, Emitter, Integer, element_bytes, pieces


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def narrow(context: Any, held: Any, source: Any, target: Any, count: Any) -> Any:
    """Write ``count`` float32 to ``target`` as elements of the array ``held``, rounded to the nearest; addresses."""
    kind = held.dtype

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, passed: Any) -> Any:
        _, source, target, count = passed
        for step, at in pieces(builder, count, (LANES, 1)):
            emitter = Emitter(builder, step)
            value = emitter.load(emitter.at(source, (at, 4)))
            emitter.store(value, emitter.at(target, (at, element_bytes(kind))), kind)
        return context.get_dummy_value()

    return types.void(held, *[Integer] * 3), emit
