"""The cpu beside a gpu as a place where the first layers are computed, and where all keys and values lie.

A thread of its own does what is to be done there: a layer of a call whose pages rest in host memory, or the attention
of a layer that the gpu computes. Calls stop meanwhile, and others go on. What an earlier call waits for comes first, so
that it is soon on the gpu, while the thread works for the next one.
"""

from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from penstock.engine.binding import Binding
from penstock.engine.call import Call, Need, current_call
from penstock.engine.errands import Errand, Errands, Tensors, bytes_of
from penstock.engine.linear import Widening
from penstock.engine.placed_attention import attend_here
from penstock.engine.twins import Twins
from penstock.memory.clock import Clock
from penstock.memory.kv import KVStore
from penstock.memory.pager import Pager


@dataclass(slots=True)
class _Stay:
    """What of a call is on the host. rank: of the call in its sweep. written: its new keys on their way. came: tensors
    that came down, by identity, each with its copy. left: what the last layer there gave."""

    rank: int
    written: list[Errand] = field(default_factory=list)
    came: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    left: list[torch.Tensor] = field(default_factory=list)


class Host:
    """Computes the first ``layers`` of a model where a sweep does, and attends to everything.

    in_place: whether the sweep that is under way computes them here.
    """

    def __init__(
        self, layers: Sequence[nn.Module], store: KVStore, pager: Pager, binding: Binding, clock: Clock
    ) -> None:
        self.layers, self.in_place = len(layers), False
        self.errands = Errands(store.device, clock)
        self._device, self._store, self._pager, self._binding, self._clock = store.device, store, pager, binding, clock
        self._widening = Widening(binding.compute, torch.device("cpu"))
        self._twins = Twins(layers)
        self._stays: dict[Call, _Stay] = {}
        for index, layer in enumerate(layers):
            _let_be_placed(layer, index)

    def begin(self, calls: Sequence[Call], in_place: bool) -> None:
        """Expect the calls of a sweep, in order."""
        self.in_place = in_place
        self._twins.bind(in_place)
        self._stays = {call: _Stay(rank) for rank, call in enumerate(calls)}

    def settle(self) -> None:
        """Leave nothing of a sweep under way."""
        self._stays = {}
        self.errands.settle()

    def close(self) -> None:
        """End the thread, and leave modules their own tensors: another engine may be built on them."""
        self._twins.bind(False)
        self.errands.close()

    def append(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> None:
        """Write the running call's new keys and values, (1, heads, T, dim) each, to their rows' blocks."""
        call = current_call()
        kv = call.batch.kv

        def write(came: Tensors, _: Tensors) -> None:
            new_keys, new_values = came
            kv.append(new_keys, new_values, layer)

        stay = self._stays[call]
        stay.written.append(self.errands.send("keys", [keys, values], write, [], stay.rank))

    def attend(
        self,
        call: Call,
        layer: int,
        q: torch.Tensor,
        lowest: torch.Tensor | None,
        scaling: float,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attention of a layer that the compute device computes, as ``attend_placed``; the call stops meanwhile."""
        kv, stay = call.batch.kv, self._stays[call]

        def attend(came: Tensors, found: Tensors) -> None:
            queries, *learned = came
            with self._clock.lane("cpu-compute", what="attention"):
                out = attend_here(kv, layer, queries, lowest, scaling, softcap, learned[0] if learned else None)
                found[0].copy_(out)

        tensors = [q] if sinks is None else [q, sinks]
        finds = torch.empty((*q.shape[:2], self._store.layer(layer).v_dim), dtype=q.dtype, device="meta")
        asked = self.errands.send("queries", tensors, attend, [finds], stay.rank)
        call.wait_for([*stay.written, asked])
        for one in stay.written:
            one.take()
        stay.written = []
        (out,) = asked.take()
        return out

    def compute(self, call: Call, index: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A layer's forward on the host; the call stops meanwhile. What the last layer gives comes up."""
        stay = self._stays[call]
        downs: list[Any] = []

        def down(tensor: torch.Tensor) -> torch.Tensor:
            if any(tensor is one for one in stay.left):
                return tensor
            if id(tensor) not in stay.came:
                own = tensor.contiguous()
                copy = _empty(own, torch.device("cpu"))
                downs.append((own, self._device.download(bytes_of(own), bytes_of(copy))))
                stay.came[id(tensor)] = tensor, copy
            return stay.came[id(tensor)][1]

        args, kwargs = _each(args, down), _each(kwargs, down)
        found: list[Any] = []
        context = copy_context()

        def work() -> None:
            if downs:
                with self._clock.lane("gpu→cpu", sum(own.nbytes for own, _ in downs), "hidden states"):
                    for _, ticket in downs:
                        ticket.finish()
                downs.clear()
            with self._clock.lane("cpu-compute", what=f"layer {index}"):
                inner = Call(call.batch, lambda _: found.append(forward(*args, **kwargs)), self._widening)
                inner.gr_context = context
                self._run(inner)

        call.let_go()
        computed = self.errands.do(work, stay.rank)
        call.wait_for([computed])
        computed.take()
        stay.left = []
        if index < self.layers - 1:
            _each(found[0], stay.left.append)
            return found[0]
        stay.came = {}
        return _each(found[0], self._up)

    def _run(self, call: Call) -> None:
        """Serve a call the pages that it asks for where they rest, to its end."""
        call.go_on()
        while isinstance(call.need, Need):
            page = call.need.page
            views = self._pager.at_rest(page)
            if views is None:
                raise RuntimeError(f"page {page} of a layer that the cpu computes does not rest there")
            self._binding.bind(page, views)
            try:
                call.resume(page, views)
            finally:
                self._binding.unbind(page)

    def _up(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the host on the compute device."""
        host = tensor.contiguous()
        up = _empty(host, self._device.torch_device)
        self._device.mark().wait_on_copy()  # its memory may still be in use by compute that was issued before
        with self._clock.wait("cpu→gpu"), self._clock.lane("cpu→gpu", host.nbytes, "hidden states"):
            self._device.upload(bytes_of(host), bytes_of(up)).finish()
        return up


class _Placed:
    """A decoder layer's forward that runs where the sweep computes it."""

    def __init__(self, index: int, forward: Callable[..., Any]) -> None:
        self.index, self.forward = index, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = current_call()
        if call.host is None or not call.host.in_place or self.index >= call.host.layers:
            return self.forward(*args, **kwargs)
        return call.host.compute(call, self.index, self.forward, args, kwargs)


def _let_be_placed(layer: nn.Module, index: int) -> None:
    """Give a layer such a forward; it keeps the one from an earlier engine."""
    if not isinstance(vars(layer).get("forward"), _Placed):
        vars(layer)["forward"] = _Placed(index, layer.forward)


def _each(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """A nest of tuples, lists and dicts with every tensor in it changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_each(part, change) for part in value)
    if type(value) is dict:
        return {key: _each(part, change) for key, part in value.items()}
    return value


def _empty(like: torch.Tensor, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # the threads that copy know nothing of the mode
        return torch.empty(like.shape, dtype=like.dtype, device=device)
