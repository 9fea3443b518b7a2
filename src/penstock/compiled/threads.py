"""A kernel's work cut into parts, which threads take in turn without the interpreter."""

import ctypes
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

PARTS = 8  # of a kernel's work for each thread, to be taken in turn
PART_BYTES = 1 << 17  # of weights, read or written: a thread that looks for work takes a few microseconds to find it

_NAP_S = 5e-5

# What the threads of a call tell each other: the next part to take, and how many parts could not be done.
_TURNS, _NEXT, _FAILED = 2, 0, 1
_BYTE, _UNSIGNED, _WORD = ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)
_TASK = ir.FunctionType(ir.VoidType(), [_BYTE])
_FORK = ir.FunctionType(ir.VoidType(), [_TASK.as_pointer(), _BYTE, _UNSIGNED, _UNSIGNED])

Turns = (types.Array(types.int64, 1, "C"),) * 2 + (types.intp,) * 2
"""Types of what ``share`` takes beside a kernel's own arguments: the last ones of a kernel for ``Shared``."""


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def share(context: Any, kernel: Any, given: Any, cuts: Any, turns: Any, threads: Any, team: Any) -> Any:
    """Do ``kernel(*given, start, stop)`` between all neighbouring ``cuts``.

    As many threads as said take one part after another, those of the team that ``team`` is the address of; this one
    alone where it is 0. turns: zeros at first.
    """
    wanted = *given.types, types.intp, types.intp
    kernel.dispatcher.compile(wanted)
    inner = kernel.dispatcher.overloads[wanted]

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, passed: Any) -> Any:
        _, bundle, cuts, turns, threads, team = passed
        values = cgutils.unpack_tuple(builder, bundle, len(given.types))
        cut_array, turn_array = (
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args[2:4], (cuts, turns), strict=True)
        )
        parts = builder.sub(cgutils.unpack_tuple(builder, cut_array.shape)[0], _WORD(1))
        held = [*values, cut_array.data, parts, turn_array.data]
        place = cgutils.alloca_once(builder, ir.LiteralStructType([value.type for value in held]))
        for number, value in enumerate(held):
            builder.store(value, cgutils.gep_inbounds(builder, place, 0, number))

        context.active_code_library.add_linking_library(inner.library)
        task = ir.Function(builder.module, _TASK, builder.module.get_unique_name("penstock.take"))
        task.linkage = "internal"
        _take(context, ir.IRBuilder(task.append_basic_block("entry")), place.type, inner)

        argument = builder.bitcast(place, _BYTE)
        alone = builder.icmp_signed("==", team, team.type(0))
        with builder.if_else(alone) as (here, together):
            with here:
                builder.call(task, [argument])
            with together:
                fork = builder.inttoptr(team, _FORK.as_pointer())
                builder.call(fork, [task, argument, builder.trunc(threads, _UNSIGNED), _UNSIGNED(0)])
        return context.get_dummy_value()

    return types.void(kernel, given, *Turns), emit


def _take(context: Any, builder: ir.IRBuilder, kind: ir.Type, kernel: Any) -> None:
    """What a thread does: part after part, until none is left."""
    place = builder.bitcast(builder.function.args[0], kind)
    held = [builder.load(cgutils.gep_inbounds(builder, place, 0, at)) for at in range(len(kind.pointee.elements))]
    *values, cuts, parts, turns = held
    taking, doing, over = (builder.append_basic_block(name) for name in ("take", "do", "over"))
    builder.branch(taking)
    builder.position_at_end(taking)
    part = builder.atomic_rmw("add", cgutils.gep(builder, turns, _NEXT), _WORD(1), "monotonic")
    builder.cbranch(builder.icmp_signed("<", part, parts), doing, over)
    builder.position_at_end(doing)
    between = [builder.load(cgutils.gep(builder, cuts, at)) for at in (part, builder.add(part, _WORD(1)))]
    status, _ = context.call_internal_no_propagate(builder, kernel.fndesc, kernel.signature, [*values, *between])
    failed = builder.zext(status.is_error, _WORD)
    builder.atomic_rmw("add", cgutils.gep(builder, turns, _FAILED), failed, "monotonic")
    builder.branch(taking)
    builder.position_at_end(over)
    builder.ret_void()


class Shared:
    """A kernel that ends in ``share``, so that its parts are done by the threads that torch computes with.

    Each thread takes the next part when it has done one: a core that the disk or somebody else needs for a while then
    holds up the others by a part at most, not by all that it lost.
    """

    def __init__(self, kernel: Callable[..., None]) -> None:
        self._kernel = kernel

    def __call__(self, *given: Any, cuts: npt.NDArray[np.int64], threads: int) -> None:
        """Do all parts between neighbouring ``cuts``, by so many threads: as many as torch has, or 1, for of fewer
        OpenMP would end the others. Raises MemoryError where one is not done."""
        turns = np.zeros(_TURNS, np.int64)
        team = _team() if threads > 1 and len(cuts) > 2 else 0
        self._kernel(*given, cuts, turns, threads, team)
        if _trouble and threading.current_thread() is threading.main_thread():
            error = _trouble[0]
            _trouble.clear()
            raise error
        if turns[_FAILED] or turns[_NEXT] < len(cuts) - 1:  # a part has nothing to fail at but its scratch
            raise MemoryError("a kernel's work is not done: most likely there is no memory for it")


_Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Fork = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
_trouble: list[BaseException] = []  # the main thread's, while others worked for it: a signal's, as a rule


@cache
def _team() -> int:
    """The address of what has threads do a task: OpenMP's where torch computes with these, else our own.

    Beside OpenMP's own ones would share the cores with them: they go on for a while after a product, looking for the
    next one.
    """
    try:
        return _address(ctypes.CDLL(None).GOMP_parallel)
    except (AttributeError, OSError):
        return _address(_by_pool)


@_Fork  # type: ignore[untyped-decorator]  # ctypes has no types
def _by_pool(task: int, given: int, threads: int, flags: int) -> None:
    """As libgomp's GOMP_parallel: so many threads do a task, and all have ended when this returns.

    What calls this is not Python: no error can leave it, and none may end it early. With fewer threads the work is done
    too, and a signal is for whoever called.
    """
    errand, asked = _Errand(_Task(task), given), False
    while True:
        try:
            if not asked:
                asked = True
                for _ in range(1, threads):
                    _pool(threads).submit(errand)
            if not errand.closed:
                errand.do(given)
                errand.closed = True
            if not errand.doing:
                return
            time.sleep(_NAP_S)
        except BaseException as error:
            if not isinstance(error, Exception):
                _trouble.append(error)


class _Errand:
    """A task that threads do as they come, until it is closed: who comes later leaves it alone."""

    def __init__(self, do: Callable[[int], None], given: int) -> None:
        self.do, self._given = do, given
        self._lock, self.doing, self.closed = threading.Lock(), 0, False

    def __call__(self) -> None:
        with self._lock:
            self.doing += 1
        if not self.closed:
            self.do(self._given)
        with self._lock:
            self.doing -= 1


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@cache
def _pool(number: int) -> ThreadPoolExecutor:
    """Threads of our own."""
    return ThreadPoolExecutor(number, "penstock-kernel")


@lru_cache(maxsize=1024)
def even(total: int, parts: int, step: int = 1) -> npt.NDArray[np.int64]:
    """Cuts of so much work into as many parts, as even as whole steps allow; kept, and not to be written to."""
    steps = -(-total // step)
    return np.minimum(steps * np.arange(parts + 1) // parts * step, total)


@numba.njit  # type: ignore[untyped-decorator]  # numba has no types
def cut_rows(reads: Any, heads: int, cuts: Any) -> None:
    """Fill ``cuts`` so that the (row, head) pairs between neighbours read about as much; reads (R,): of each row."""
    parts, total = len(cuts) - 1, reads.sum() * heads
    pair, before = 0, 0
    for part in range(1, parts):
        while before * parts < total * part:
            before += reads[pair // heads]
            pair += 1
        cuts[part] = pair
    cuts[0], cuts[parts] = 0, len(reads) * heads
