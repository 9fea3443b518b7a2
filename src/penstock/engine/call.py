"""A micro-batch's forward call, run in a greenlet that stops wherever it needs something."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

import greenlet
import torch

from penstock.quant.packed import Packed
from penstock.schedule.types import Span

Views = Mapping[tuple[str, int], torch.Tensor | Packed]

if TYPE_CHECKING:
    from penstock.engine.host import Host
    from penstock.engine.kv_batch import KVBatch
    from penstock.engine.linear import Widening
    from penstock.engine.recurrent import RowStates


class Answer(Protocol):
    """What is computed beside the compute device."""

    @property
    def coming(self) -> "Future[Any]":
        """Done when it is there, or has failed."""


@dataclass(frozen=True, slots=True)
class Need:
    """A suspended call waits for the page with this index."""

    page: int


@dataclass(frozen=True, slots=True)
class Awaits:
    """A suspended call waits for what is computed beside the compute device, and keeps the page that it holds."""

    answers: Sequence[Answer]


@dataclass(slots=True)
class Batch:
    """A micro-batch as one flat call of T tokens.

    ids, positions: (1, T). wanted: flat positions whose logits are asked for, in span order. lengths: each span's row
    length (all tokens known so far), which rotary tables that depend on length go by. kv: where its rows' keys and
    values lie. states: recurrent state of rows, for layers that keep one.
    """

    spans: tuple[Span, ...]
    lengths: tuple[int, ...]
    ids: torch.Tensor
    positions: torch.Tensor
    wanted: torch.Tensor
    kv: "KVBatch"
    states: "RowStates"


class Call(greenlet.greenlet):
    """One forward call; its state (batch, page held) belongs to the greenlet, never to a global.

    widening: multiplies by stored weights where the call computes. host: the cpu beside that, where it has all keys;
    None where keys lie where the call computes, or below.
    """

    def __init__(
        self,
        batch: Batch,
        forward: Callable[[Batch], torch.Tensor | None],
        widening: "Widening | None" = None,
        host: "Host | None" = None,
    ) -> None:
        super().__init__()
        self.batch, self.host, self._widening = batch, host, widening
        self.need: Need | Awaits | None = None
        self.held: int | None = None
        self.views: Views = {}
        self.logits: torch.Tensor | None = None
        self._forward = forward

    def run(self) -> None:
        self.logits = self._forward(self.batch)

    @property
    def widening(self) -> "Widening":
        """What multiplies; RuntimeError where the call was made without."""
        if self._widening is None:
            raise RuntimeError("a call that was given nothing to multiply with has met a matrix")
        return self._widening

    def hold(self, page: int) -> Views:
        """Stop until the engine has brought this page; its views are good until the next page is asked for."""
        while self.held != page:
            self._stop(Need(page))
        return self.views

    def wait_for(self, answers: Sequence[Answer]) -> None:
        """Stop until these are there, so that the compute device works for other calls meanwhile."""
        self._stop(Awaits(answers))

    def let_go(self) -> None:
        """Need the page that is held no more."""
        self.held, self.views = None, {}

    def _stop(self, need: Need | Awaits) -> None:
        parent = self.parent
        if parent is None:
            raise RuntimeError("a call without an engine above it cannot wait for anything")
        parent.switch(need)

    def resume(self, page: int, views: Views) -> None:
        """Go on with a page; returns when the call needs another one or has ended."""
        self.held, self.views = page, views
        self._step()

    def go_on(self) -> None:
        """Run from the beginning, or with what it awaited, up to the next stop."""
        self._step()

    def _step(self) -> None:
        reached = self.switch()
        self.need = None if self.dead else reached
        if self.dead:
            self.views = {}


def current_call() -> Call:
    """The call that the running code belongs to; RuntimeError outside of one."""
    call = greenlet.getcurrent()
    if not isinstance(call, Call):
        raise RuntimeError("penstock's attention was called outside of a sweep")
    return call


def starts_of(spans: Sequence[Span]) -> list[int]:
    """The first flat position of each span of a call."""
    return list(accumulate((span.count for span in spans[:-1]), initial=0))


def flat_index(spans: Sequence[Span], starts: Sequence[int], chosen: Sequence[int]) -> torch.Tensor:
    """Flat positions of the chosen spans' tokens, in order; int64."""
    return torch.cat([torch.arange(starts[i], starts[i] + spans[i].count) for i in chosen])
