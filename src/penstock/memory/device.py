"""The compute device: its memory, and copies to and from it that overlap compute."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.utils.dlpack import from_dlpack

from penstock.errors import UserError
from penstock.memory.buffers import aligned_buffer
from penstock.plan.policy import Tier

EMULATED_BYTES_S = 8e9


class Ticket(Protocol):
    """A copy under way."""

    def wait(self) -> None:
        """Lets compute issued from here on come after the copy."""

    def finish(self) -> None:
        """Blocks the calling thread (and nothing else) until the copy is done."""


class Mark(Protocol):
    """The moment after the compute issued so far."""

    def wait_on_copy(self) -> None:
        """Lets copies issued from here on come after that moment."""


class Device(Protocol):
    """Where modules compute; its memory is the fast tier.

    compute_tier: the name of that tier. torch_device: where its tensors live.
    """

    compute_tier: Tier
    torch_device: torch.device

    def alloc(self, nbytes: int, sparse: bool = False) -> torch.Tensor:
        """A uint8 tensor on the fast tier. sparse: much of it may never be written to."""

    def host_alloc(self, nbytes: int) -> torch.Tensor:
        """A uint8 tensor in host memory that copies to and from the device are fast with."""

    def upload(self, src: torch.Tensor, dst: torch.Tensor) -> Ticket:
        """Copies host bytes to the fast tier; leave both alone until the ticket says so."""

    def download(self, src: torch.Tensor, dst: torch.Tensor) -> Ticket:
        """Copies fast bytes, as the compute issued so far leaves them, to the host."""

    def mark(self) -> Mark:
        """A mark after the compute that this thread issued so far."""

    @property
    def peak_bytes(self) -> int:
        """The most that was allocated on the fast tier so far (0 on a CPU: the process's own memory says it)."""

    def close(self) -> None:
        """Ends the device's threads."""


def open_device(name: str = "auto") -> Device:
    """The device named ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``emulated``; else UserError."""
    if compute_tier(name) == "cpu":
        return CpuDevice()
    return EmulatedGpu() if name == "emulated" else CudaDevice()


def compute_tier(name: str) -> Tier:
    """The tier that a device of this name computes on; UserError where there is none here."""
    if name not in ("auto", "cpu", "cuda", "emulated"):
        raise UserError(f"--device {name}: there are auto, cuda and cpu")
    has_cuda = name in ("auto", "cuda") and torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise UserError("--device cuda: torch finds no CUDA device here; use --device cpu")
    return "gpu" if name == "emulated" or has_cuda else "cpu"


class _Done:
    """A copy that is over, and a mark that nothing has to wait for."""

    def wait(self) -> None: ...

    def finish(self) -> None: ...

    def wait_on_copy(self) -> None: ...


class CpuDevice:
    """The CPU computes; its memory is the fast tier."""

    compute_tier: Tier = "cpu"
    torch_device = torch.device("cpu")

    def alloc(self, nbytes: int, sparse: bool = False) -> torch.Tensor:
        return aligned_buffer(nbytes, huge=not sparse)

    def host_alloc(self, nbytes: int) -> torch.Tensor:
        return aligned_buffer(nbytes)

    def upload(self, src: torch.Tensor, dst: torch.Tensor) -> Ticket:
        dst.copy_(src)
        return _Done()

    def download(self, src: torch.Tensor, dst: torch.Tensor) -> Ticket:
        dst.copy_(src)
        return _Done()

    def mark(self) -> Mark:
        return _Done()

    @property
    def peak_bytes(self) -> int:
        return 0

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _CudaTicket:
    event: torch.cuda.Event

    def wait(self) -> None:
        torch.cuda.current_stream().wait_event(self.event)

    def finish(self) -> None:
        self.event.synchronize()


@dataclass(frozen=True, slots=True)
class _CudaMark:
    event: torch.cuda.Event
    streams: tuple[torch.cuda.Stream, ...]

    def wait_on_copy(self) -> None:
        for stream in self.streams:
            stream.wait_event(self.event)


class CudaDevice:
    """One CUDA device: a stream of copies in each direction, ordered against compute by events alone."""

    compute_tier: Tier = "gpu"

    def __init__(self) -> None:
        self.torch_device = torch.device("cuda", torch.cuda.current_device())
        self._up = torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]  # torch leaves it so
        self._down = torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]  # torch leaves it so

    def alloc(self, nbytes: int, sparse: bool = False) -> torch.Tensor:
        # by way of dlpack its storage cannot be resized, like mapped memory: that tells an arena from an activation
        arena: torch.Tensor = from_dlpack(torch.empty(nbytes, dtype=torch.uint8, device=self.torch_device))
        return arena

    def host_alloc(self, nbytes: int) -> torch.Tensor:
        return aligned_buffer(nbytes, pinned=True)

    def upload(self, src: torch.Tensor, dst: torch.Tensor) -> Ticket:
        return self._copy(src, dst, self._up)

    def download(self, src: torch.Tensor, dst: torch.Tensor) -> Ticket:
        self._down.wait_stream(torch.cuda.current_stream(self.torch_device))
        return self._copy(src, dst, self._down)

    def mark(self) -> Mark:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it so
        event.record(torch.cuda.current_stream(self.torch_device))
        return _CudaMark(event, (self._up, self._down))

    @property
    def peak_bytes(self) -> int:
        return int(torch.cuda.max_memory_allocated(self.torch_device))

    def close(self) -> None: ...

    def _copy(self, src: torch.Tensor, dst: torch.Tensor, stream: torch.cuda.Stream) -> Ticket:
        # blocking: a thread in finish() sleeps instead of spinning
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch leaves it so
        with torch.cuda.stream(stream):
            dst.copy_(src, non_blocking=True)
            event.record(stream)
        return _CudaTicket(event)


@dataclass(frozen=True, slots=True)
class _FutureTicket:
    future: Future[None]

    def wait(self) -> None:
        self.future.result()

    def finish(self) -> None:
        self.future.result()


class EmulatedGpu:
    """A gpu tier made of host memory, for tests: copies run in a thread of their own at ``bandwidth_bytes_s``.

    A copy lands at the end of its time and the target is all ones (NaN) before, so what reads too early shows.
    """

    compute_tier: Tier = "gpu"
    torch_device = torch.device("cpu")

    def __init__(self, bandwidth_bytes_s: float = EMULATED_BYTES_S) -> None:
        self.bandwidth_bytes_s = bandwidth_bytes_s
        self.allocated_bytes = 0
        self._lock = threading.Lock()
        self._up = ThreadPoolExecutor(1, thread_name_prefix="penstock-upload")
        self._down = ThreadPoolExecutor(1, thread_name_prefix="penstock-download")

    def alloc(self, nbytes: int, sparse: bool = False) -> torch.Tensor:
        with self._lock:
            self.allocated_bytes += nbytes
        return aligned_buffer(nbytes)

    def host_alloc(self, nbytes: int) -> torch.Tensor:
        return aligned_buffer(nbytes)

    def upload(self, src: torch.Tensor, dst: torch.Tensor) -> Ticket:
        dst.fill_(255)
        return _FutureTicket(self._up.submit(self._copy, src, dst))

    def download(self, src: torch.Tensor, dst: torch.Tensor) -> Ticket:
        dst.fill_(255)
        return _FutureTicket(self._down.submit(self._copy, src, dst))

    def mark(self) -> Mark:
        return _Done()  # compute on the CPU is over when the call returns

    @property
    def peak_bytes(self) -> int:
        return self.allocated_bytes

    def close(self) -> None:
        self._up.shutdown()
        self._down.shutdown()

    def _copy(self, src: torch.Tensor, dst: torch.Tensor) -> None:
        time.sleep(src.numel() / self.bandwidth_bytes_s)
        dst.copy_(src)
