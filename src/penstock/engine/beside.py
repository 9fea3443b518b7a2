"""Attention on the cpu beside a gpu: queries come down, results go up, keys and values stay where they lie."""

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from penstock.engine.attention import attend_blocks
from penstock.engine.dense_attention import Result
from penstock.errors import UserError
from penstock.memory.clock import Clock
from penstock.memory.device import Ticket
from penstock.memory.kv import KVStore

if TYPE_CHECKING:
    from penstock.engine.kv_batch import Portion


@dataclass(slots=True, eq=False)
class _Space:
    """Host memory of one question and its answer, which no other one uses meanwhile. copy: the last in or out of it."""

    memory: torch.Tensor
    copy: Ticket | None = None
    taken: bool = True


@dataclass(frozen=True, slots=True)
class Question:
    """A question that the cpu works on. tokens: of the call that it is about. result: where its answer comes up to."""

    tokens: torch.Tensor
    result: Result
    nbytes: int
    space: _Space
    coming: "Future[Ticket]"
    clock: Clock

    def wait(self) -> None:
        """Blocks until the answer is on its way up, or has failed."""
        wait([self.coming])

    def take(self) -> Result:
        """(out, lse) on the compute device, float32, lse without sinks. Raises what ended the work on it."""
        arriving = self.coming.result()
        with self.clock.wait("cpu→gpu"), self.clock.lane("cpu→gpu", self.nbytes, "attention"):
            arriving.wait()
        self.space.taken = False
        return self.result


class Beside:
    """A thread that attends to blocks on the cpu while the compute device works for other micro-batches.

    Every question has host memory of its own until its answer is taken, whatever is asked meanwhile.
    """

    def __init__(self, store: KVStore, clock: Clock) -> None:
        self._device, self._clock = store.device, clock
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="penstock-attention")
        self._spaces: list[_Space] = []
        self._coming: list[Future[Ticket]] = []

    def ask(
        self,
        layer: int,
        portions: Sequence["Portion"],
        q: torch.Tensor,
        lowest: torch.Tensor | None,
        scaling: float,
        softcap: float | None,
    ) -> list[Question]:
        """Begin on each portion's attention; arguments as ``attention.attend_blocks`` has them, lowest on the host."""
        self._coming = [one for one in self._coming if not one.done()]
        return [self._ask(layer, portion, q, lowest, scaling, softcap) for portion in portions]

    def _ask(
        self,
        layer: int,
        portion: "Portion",
        q: torch.Tensor,
        lowest: torch.Tensor | None,
        scaling: float,
        softcap: float | None,
    ) -> Question:
        queries = portion.mine(q).contiguous()
        low = None if lowest is None else portion.mine(lowest)
        tokens, heads, _ = queries.shape
        width = portion.store.layer(layer).v_dim
        nbytes = 4 * tokens * heads * (width + 1)
        asked_bytes = -(-queries.nbytes // 64) * 64
        space = self._space(asked_bytes + nbytes)
        question, answer = space.memory[: queries.nbytes], space.memory[asked_bytes : asked_bytes + nbytes]
        down = space.copy = self._device.download(queries.reshape(-1).view(torch.uint8), question)
        with torch.inference_mode(False):  # the threads that copy know nothing of the mode
            up = torch.empty(nbytes, dtype=torch.uint8, device=queries.device)
        mark, coming_down, kind, shape = self._device.mark(), [queries], queries.dtype, queries.shape

        @torch.inference_mode()
        def work() -> Ticket:
            with self._clock.lane("gpu→cpu", question.nbytes, "queries"):
                down.finish()
            coming_down.clear()
            with portion.arenas(layer) as (keys, values), self._clock.lane("cpu-compute", what="attention"):
                q_host = question.view(kind).view(shape)
                found = attend_blocks(q_host, keys, values, portion.tables, low, scaling, softcap)
            for part, into in zip(found, _results(answer, tokens, heads), strict=True):
                into.copy_(part)
            mark.wait_on_copy()  # what ``up`` takes may be memory that earlier compute still used
            space.copy = self._device.upload(answer, up)
            return space.copy

        coming = self._worker.submit(work)
        self._coming.append(coming)  # at once, and not the question: what comes up for it is the caller's alone
        return Question(portion.tokens, _results(up, tokens, heads), nbytes, space, coming, self._clock)

    def _space(self, nbytes: int) -> _Space:
        """Host memory that nobody uses; what has become too small gives way."""
        free = [space for space in self._spaces if not space.taken]
        space = next((space for space in free if space.memory.numel() >= nbytes), None)
        if space is None:
            for old in free[:1]:
                self._finish(old)
                self._spaces.remove(old)
            with torch.inference_mode(False):  # as above
                space = _Space(self._device.host_alloc(1 << math.ceil(math.log2(nbytes))))
            self._spaces.append(space)
        self._finish(space)
        space.taken = True
        return space

    def settle(self) -> None:
        """Leave nothing under way: what a sweep that broke off had asked is dropped, and its memory is free again."""
        for one in self._coming:
            one.cancel()
        wait(self._coming)
        self._coming = []
        for space in self._spaces:
            if space.taken:
                self._finish(space)
                space.taken = False

    @staticmethod
    def _finish(space: _Space) -> None:
        copy, space.copy = space.copy, None
        if copy is not None:
            with suppress(UserError):
                copy.finish()

    def close(self) -> None:
        """End the thread."""
        self.settle()
        self._worker.shutdown()


def _results(memory: torch.Tensor, tokens: int, heads: int) -> Result:
    """Out (tokens, heads, dv) and lse (tokens, heads), float32, in bytes that hold both."""
    numbers = memory.view(torch.float32)
    lse = numbers[: tokens * heads].view(tokens, heads)
    return numbers[tokens * heads :].view(tokens, heads, -1), lse
