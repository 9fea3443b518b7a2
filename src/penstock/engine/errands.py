"""A thread of the cpu beside a gpu: tensors come down to it, it works on them, and what it found goes up."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from queue import PriorityQueue

import torch

from penstock.memory.clock import Clock
from penstock.memory.device import Device, Ticket

Tensors = Sequence[torch.Tensor]
Coming = Future[Ticket | None]
_LINE = 64  # bytes that a tensor's place is rounded up to


@dataclass(slots=True, eq=False)
class Space:
    """Host memory of one errand, which no other one uses meanwhile. copy: the last in or out of it."""

    memory: torch.Tensor
    copy: Ticket | None = None
    taken: bool = True


@dataclass(frozen=True, slots=True)
class Errand:
    """What the thread works on. found: where that comes up to. space: None where nothing has to come up. coming: done
    when it is on its way up, or has failed."""

    found: Tensors
    nbytes: int
    space: Space | None
    coming: Coming
    clock: Clock

    def take(self) -> Tensors:
        """What was found, on the compute device. Raises what ended the work on it."""
        arriving = self.coming.result()
        if arriving is not None and self.space is not None:
            with self.clock.wait("cpu→gpu"), self.clock.lane("cpu→gpu", self.nbytes, "attention"):
                arriving.wait()
            self.space.taken = False
        return self.found


class Errands:
    """Errands are done one after another: of those that wait the one of the lowest rank, of equal rank the oldest.

    Each has host memory of its own until what it found is taken, whatever is sent meanwhile.
    """

    def __init__(self, device: Device, clock: Clock) -> None:
        self._device, self._clock = device, clock
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="penstock-beside")
        self.spaces: list[Space] = []
        self._coming: list[Coming] = []
        self._waiting: PriorityQueue[tuple[int, int, Coming, Callable[[], Ticket | None]]] = PriorityQueue()
        self._sent = count()

    def send(
        self, what: str, tensors: Tensors, work: Callable[[Tensors, Tensors], None], finds: Tensors, rank: int = 0
    ) -> Errand:
        """``work(came, found)``, with copies of these tensors on the host and memory for what it finds there.

        what: came down, for a trace. finds: meta tensors like what is found.
        """
        sent = [tensor.contiguous() for tensor in tensors]
        asked_bytes = _nbytes(sent)
        nbytes = _nbytes(finds)
        space = self._space(asked_bytes + nbytes)
        came, found = _laid(space.memory, sent), _laid(space.memory[asked_bytes:], finds)
        downs = [self._device.download(bytes_of(one), bytes_of(host)) for one, host in zip(sent, came, strict=True)]
        space.copy = downs[-1]
        with torch.inference_mode(False):  # the threads that copy know nothing of the mode
            up = torch.empty(nbytes, dtype=torch.uint8, device=sent[0].device)
        mark = self._device.mark()

        @torch.inference_mode()
        def run() -> Ticket | None:
            with self._clock.lane("gpu→cpu", sum(one.nbytes for one in came), what):
                for down in downs:
                    down.finish()
            sent.clear()
            work(came, found)
            if not nbytes:
                space.taken = False
                return None
            mark.wait_on_copy()  # what ``up`` takes may be memory that earlier compute still used
            space.copy = self._device.upload(space.memory[asked_bytes : asked_bytes + nbytes], up)
            return space.copy

        exact = sum(one.nbytes for one in found)
        return Errand(_laid(up, finds), exact, space if nbytes else None, self._begun(run, rank), self._clock)

    def do(self, work: Callable[[], None], rank: int = 0) -> Errand:
        """Work that sees to its tensors itself."""

        @torch.inference_mode()
        def run() -> None:
            work()

        return Errand((), 0, None, self._begun(run, rank), self._clock)

    def _begun(self, run: Callable[[], Ticket | None], rank: int) -> Coming:
        coming: Coming = Future()
        # at once, and not the errand: what comes up for it is the caller's alone
        self._coming = [*(one for one in self._coming if not one.done()), coming]
        self._waiting.put((rank, next(self._sent), coming, run))
        self._worker.submit(self._do_next)
        return coming

    def _do_next(self) -> None:
        _, _, coming, run = self._waiting.get()
        if not coming.set_running_or_notify_cancel():
            return
        try:
            coming.set_result(run())
        except BaseException as error:  # it is the caller's, who takes what was found
            coming.set_exception(error)

    def _space(self, nbytes: int) -> Space:
        """Host memory that nobody uses; what has become too small gives way."""
        free = [space for space in self.spaces if not space.taken]
        large = [space for space in free if space.memory.numel() >= nbytes]
        space = min(large, key=lambda space: space.memory.numel(), default=None)
        if space is None:
            for old in free[:1]:
                self._finish(old)
                self.spaces.remove(old)
            with torch.inference_mode(False):  # as above
                space = Space(self._device.host_alloc(1 << math.ceil(math.log2(nbytes))))
            self.spaces.append(space)
        self._finish(space)
        space.taken = True
        return space

    def settle(self) -> None:
        """Leave nothing under way: what a sweep that broke off had sent is dropped, and its memory is free again."""
        for one in self._coming:
            one.cancel()
        wait(self._coming)
        self._coming = []
        for space in self.spaces:
            if space.taken:
                self._finish(space)
                space.taken = False

    @staticmethod
    def _finish(space: Space) -> None:
        copy, space.copy = space.copy, None
        if copy is not None:
            with suppress(Exception):  # who waits for what was copied is told of it there
                copy.finish()

    def close(self) -> None:
        """End the thread."""
        try:
            self.settle()
        finally:
            self._worker.shutdown()


def _nbytes(tensors: Tensors) -> int:
    """Bytes of a place for tensors one after another."""
    return sum(-(-one.nbytes // _LINE) * _LINE for one in tensors)


def _laid(memory: torch.Tensor, like: Tensors) -> list[torch.Tensor]:
    """Tensors like these, one after another in memory."""
    laid, at = [], 0
    with torch.inference_mode(False):  # as above
        for one in like:
            laid.append(memory[at : at + one.nbytes].view(one.dtype).view(one.shape))
            at += -(-one.nbytes // _LINE) * _LINE
    return laid


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor as bytes that threads may copy."""
    with torch.inference_mode(False):  # as above
        return tensor.view(-1).view(torch.uint8)
