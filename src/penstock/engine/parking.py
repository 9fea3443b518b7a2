"""Activations of suspended micro-batches on slower tiers: out of memory at a stop, back before the call goes on."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from penstock.engine.call import Call
from penstock.memory.clock import Clock
from penstock.memory.device import Device
from penstock.memory.scratch_file import ScratchFile
from penstock.model.pages import SECTOR
from penstock.plan.placement import spread
from penstock.plan.policy import TIERS, Shares, Tier
from penstock.plan.sizes import parking_file_bytes

_LEAST_BYTES = 256  # of a storage: scalars and rotary frequencies are not worth a copy
_DEPTH = 3  # of tuples, lists and dicts: keyword arguments that hold (cos, sin)


@dataclass(slots=True)
class _Spot:
    """Where one micro-batch's activations rest. live: their bytes at its last stop. out: what is away now."""

    number: int
    home: Tier
    live: int = 0
    out: list[tuple[torch.UntypedStorage, int]] = field(default_factory=list)
    host: torch.Tensor | None = None


class Parking:
    """Keeps the shares of ``--activations``: micro-batches in turn rest on the tiers, as whole ones meet the shares.

    What a call holds is found in the local variables of its suspended frames; a storage is emptied in place, so every
    view of it is whole again once it is refilled. Weights and KV are left alone: they lie in memory that cannot be
    resized, or belong to the module. peak: bytes per tier when most were held, since ``begin``.
    """

    def __init__(
        self, shares: Shares, module: nn.Module, device: Device, clock: Clock, directory: Path | None = None
    ) -> None:
        self.shares, self.module, self.device, self.clock, self.directory = shares, module, device, clock, directory
        self.peak: dict[Tier, int] = dict.fromkeys(TIERS, 0)
        self._spots: dict[Call, _Spot] = {}
        self._kept: set[int] = set()
        self._files: dict[int, ScratchFile] = {}
        self._buffer = device.host_alloc(0)
        self._writing: Future[None] | None = None

    def begin(self, calls: Sequence[Call]) -> None:
        """Expect the calls of a sweep, in order."""
        self._let_go()
        homes = spread([1] * len(calls), self.shares)
        self._spots = {call: _Spot(n, home) for n, (call, home) in enumerate(zip(calls, homes, strict=True))}
        self._kept = set(_module_storages(self.module))
        self.peak = dict.fromkeys(TIERS, 0)

    def park(self, call: Call) -> None:
        """Take a call that has just stopped out of memory if it rests on another tier; forget one that has ended."""
        if call.dead:
            del self._spots[call]
            return
        spot = self._spots[call]
        found = {s.data_ptr(): s for s in held_storages(call) if s.data_ptr() not in self._kept}
        spot.live = sum(storage.nbytes() for storage in found.values())
        if spot.home != self.device.compute_tier and found:
            self._take_out(spot, list(found.values()))
        self._note()

    def unpark(self, call: Call) -> None:
        """Bring a call's activations back to where they were."""
        spot = self._spots[call]
        if not spot.out:
            return
        nbytes = _packed(spot.out)
        buffer = spot.host if spot.host is not None else self._read(spot, nbytes)
        for storage, size in spot.out:
            storage.resize_(size)
        self.device.mark().wait_on_copy()  # the new memory may still be in use by compute that was issued before
        with self._crossing("cpu→gpu", nbytes):
            tickets = [self.device.upload(buffer[at : at + size], _bytes(s)) for s, size, at in _places(spot.out)]
            for ticket in tickets:
                ticket.finish()
        spot.out = []

    @property
    def disk_bytes(self) -> int:
        """Disk space that is taken, whether activations are there now or not."""
        return sum(file.taken_bytes for file in self._files.values())

    def close(self) -> None:
        """Wait for what is under way; the disk space goes back."""
        self._let_go()
        self._spots.clear()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _take_out(self, spot: _Spot, storages: Sequence[torch.UntypedStorage]) -> None:
        out = [(storage, storage.nbytes()) for storage in storages]
        nbytes = _packed(out)
        if spot.home == "cpu":
            if spot.host is None or spot.host.numel() < nbytes:
                spot.host = self._host(nbytes)
            buffer = spot.host
        else:
            buffer = self._shared(nbytes)
        with self._crossing("gpu→cpu", nbytes):
            tickets = [self.device.download(_bytes(s), buffer[at : at + size]) for s, size, at in _places(out)]
            for ticket in tickets:
                ticket.finish()
        spot.out = out
        for storage, _ in out:
            storage.resize_(0)
        if spot.home == "disk":
            self._write(spot, buffer[:nbytes])

    def _write(self, spot: _Spot, buffer: torch.Tensor) -> None:
        lane = ExitStack()
        file = self._file(spot.number, buffer.numel())
        lane.enter_context(self.clock.lane("cpu→disk", buffer.numel(), "activations"))
        self._writing = file.write(0, buffer)
        self._writing.add_done_callback(lambda _: lane.close())

    def _read(self, spot: _Spot, nbytes: int) -> torch.Tensor:
        buffer = self._shared(nbytes)
        with self.clock.wait("disk→cpu"), self.clock.lane("disk→cpu", nbytes, "activations"):
            self._files[spot.number].read_into(0, buffer[:nbytes]).result()
        return buffer

    def _file(self, number: int, nbytes: int) -> ScratchFile:
        """A micro-batch's place on disk. What an earlier stop left in a smaller one has been read back since."""
        file = self._files.get(number)
        if file is None or file.nbytes < nbytes:
            if self.directory is None:
                raise ValueError("activations on disk need a directory")
            if file is not None:
                file.close()
            path = self.directory / f"activations-{number}"
            file = self._files[number] = ScratchFile(path, parking_file_bytes(nbytes), threads=1)
        return file

    def _shared(self, nbytes: int) -> torch.Tensor:
        """The host buffer through which bytes go to disk and come back; free to be used."""
        self._settle()
        if self._buffer.numel() < nbytes:
            self._buffer = self._host(nbytes)
        return self._buffer

    def _host(self, nbytes: int) -> torch.Tensor:
        with torch.inference_mode(False):  # the threads that copy know nothing of the mode
            return self.device.host_alloc(nbytes)

    def _settle(self) -> None:
        writing, self._writing = self._writing, None  # its error is raised once
        if writing is not None:
            with self.clock.wait("cpu→disk"):
                writing.result()

    def _let_go(self) -> None:
        """Wait for what a sweep that broke off was writing; how that went is of no interest any more."""
        if self._writing is not None:
            wait([self._writing])
            self._writing = None

    def _crossing(self, lane: Any, nbytes: int) -> ExitStack:
        """The lane between device and host; none where the device computes in host memory."""
        stack = ExitStack()
        if self.device.compute_tier == "gpu":
            stack.enter_context(self.clock.wait(lane))
            stack.enter_context(self.clock.lane(lane, nbytes, "activations"))
        return stack

    def _note(self) -> None:
        held: dict[Tier, int] = dict.fromkeys(TIERS, 0)
        for spot in self._spots.values():
            held[spot.home] += spot.live
        if sum(held.values()) > sum(self.peak.values()):
            self.peak = held


def held_storages(call: Call) -> Iterator[torch.UntypedStorage]:
    """Storages of floating-point tensors that the local variables of a suspended call's frames hold.

    Left out: storages that cannot be resized (mapped memory: weights and KV), and small ones.
    """
    frame: FrameType | None = call.gr_frame
    while frame is not None:
        for value in _locals(frame):
            for tensor in _tensors(value, _DEPTH):
                storage = tensor.untyped_storage()
                if storage.resizable() and storage.nbytes() >= _LEAST_BYTES:
                    yield storage
        frame = frame.f_back


def _locals(frame: FrameType) -> list[Any]:
    """A frame's own local values; closed-over ones may belong to others too."""
    found = frame.f_locals
    values = [value for name, value in found.items() if name not in frame.f_code.co_freevars]
    if isinstance(found, dict) and frame.f_code.co_flags & CO_OPTIMIZED:
        found.clear()  # before Python 3.13 this is a copy that the frame keeps: it would hold on to dead tensors
    return values


def _tensors(value: Any, depth: int) -> Iterator[torch.Tensor]:
    # exact types: subclasses (an embedding's row table) have no storage of their own
    if type(value) is torch.Tensor:
        if value.is_floating_point() and value.device.type != "meta" and value.layout is torch.strided:
            yield value
    elif depth and isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part, depth - 1)


def _module_storages(module: nn.Module) -> Iterator[int]:
    """Where parameters, buffers and plain tensor attributes of a module lie."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers, vars(part)):
            for value in tensors.values():
                if isinstance(value, torch.Tensor) and type(value) in (torch.Tensor, nn.Parameter):
                    yield value.untyped_storage().data_ptr()


def _places(out: Sequence[tuple[torch.UntypedStorage, int]]) -> Iterator[tuple[torch.UntypedStorage, int, int]]:
    """Storages, their bytes and where each begins in a buffer."""
    at = 0
    for storage, nbytes in out:
        yield storage, nbytes, at
        at += -(-nbytes // 64) * 64


def _packed(out: Sequence[tuple[torch.UntypedStorage, int]]) -> int:
    """Bytes of a buffer that holds all of them: whole sectors."""
    return -(-sum(-(-nbytes // 64) * 64 for _, nbytes in out) // SECTOR) * SECTOR


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    with torch.inference_mode(False):  # as above
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
