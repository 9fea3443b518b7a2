"""A place of the ring that pages stream through, and what comes there."""

import time
from typing import Protocol

import torch

from penstock.memory.clock import Clock
from penstock.memory.device import Mark
from penstock.memory.direct import Arrival

_POLL_S = 1e-4


class Load(Protocol):
    """A page on its way into a slot."""

    def done(self) -> bool:
        """Whether nothing is written any more."""

    def result(self) -> object:
        """Waits for the page; raises what went wrong."""

    def cancel(self) -> object:
        """It is of no use any more."""


class Slot:
    """A buffer, and the page that it holds or is being given.

    holds: who reads the page. load: the one under way or the last one. uncounted: it and the page's name, as long as
    the clock has not been told of it. last_use: of the page before, which a load comes after.
    """

    def __init__(self, buffer: torch.Tensor) -> None:
        self.buffer = buffer
        self.page: int | None = None
        self.holds = 0
        self.load: Load | None = None
        self.uncounted: tuple[Arrival, str] | None = None
        self.last_use: Mark | None = None

    @property
    def loading(self) -> bool:
        """Whether something is still written to the buffer."""
        return self.load is not None and not self.load.done()

    def wait(self) -> None:
        """Until nothing is written to it any more, whether its page has come or not."""
        while self.loading:
            time.sleep(_POLL_S)

    def give_up(self) -> None:
        """Let what comes be of no use."""
        if self.load is not None:
            self.load.cancel()

    def count(self, clock: Clock) -> None:
        """Tell the clock of a page that has come."""
        if self.uncounted is not None and not self.loading:
            arrival, name = self.uncounted
            clock.count("disk→cpu", *arrival.span, arrival.nbytes, name)
            self.uncounted = None
