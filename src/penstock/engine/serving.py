"""One pass over all pages: each is served to every call that needs it before its slot is freed."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from functools import partial

from penstock.engine.binding import Binding
from penstock.engine.call import Awaits, Call, Need, Views
from penstock.engine.parking import Parking
from penstock.memory.allocator import HeapWatch
from penstock.memory.clock import Clock
from penstock.memory.pager import Pager


class Serving:
    """Brings page after page and lets every call that waits for it go on.

    ended: told of each call that has come to its end.
    """

    def __init__(
        self,
        pager: Pager,
        binding: Binding,
        clock: Clock,
        parking: Parking | None,
        heap: HeapWatch,
        ended: Callable[[Call], None],
    ) -> None:
        self.pager, self.binding, self.clock, self.parking, self.heap = pager, binding, clock, parking, heap
        self._ended = ended
        self._order: list[int] = []

    def serve(self, calls: Sequence[Call], side_by_side: bool = False) -> Sequence[int]:
        """Let calls run to their ends; returns the pages in the order in which they were served.

        side_by_side: another processor computes whole layers beside the compute device. Then a call runs through
        resident pages as far as it can before the next one does, so that both have something to do.
        """
        self._order = []
        if self.parking is not None:
            self.parking.begin(calls)
        for call in calls:
            with self.clock.compute():
                call.go_on()
            if self.parking is not None:
                self.parking.park(call)
        if not side_by_side:
            self._answer(calls)
        at = -1
        while waiting := [call for call in calls if not call.dead]:
            if side_by_side and self._one_goes_on(waiting):
                continue
            needs = {call.need.page for call in waiting if isinstance(call.need, Need)}
            at = min((page for page in needs if page > at), default=min(needs))
            self._with_page(at, partial(self._to_all, waiting, at))
        return self._order

    def _with_page(self, page: int, serve: Callable[[Views], None]) -> None:
        """Bring a page, bound to its modules for as long as it is served."""
        views = self.pager.acquire(page)
        try:
            self.binding.bind(page, views)
            serve(views)
        finally:  # an interruption must not keep the slot
            self.binding.unbind(page)
            self.pager.release(page)
        self.heap.look()
        self._order.append(page)

    def _to_all(self, calls: Sequence[Call], page: int, views: Views) -> None:
        """Let every call that waits for this page go on to its next one, or to its end."""
        for call in calls:
            if call.need == Need(page):
                self._to(call, page, views)
        self._answer(calls)

    def _answer(self, calls: Sequence[Call]) -> None:
        """Let calls that await what is computed beside the compute device go on, in turn, until none is left."""
        while asking := [(call, call.need.answers) for call in calls if isinstance(call.need, Awaits)]:
            for call, answers in asking:
                with self.clock.wait("cpu-compute"):
                    wait([answer.coming for answer in answers])
                self._go_on(call, call.go_on)

    def _one_goes_on(self, calls: Sequence[Call]) -> bool:
        """Let the first call go on that can without a page that has to be brought; False where all wait for such.

        None overtakes an earlier one at any layer, for it may attend to its keys: what is computed beside is so for
        earlier calls first, and no page is served beyond one that an earlier call waits for.
        """
        # the last calls first: at the same layer none is seen to be done before an earlier one is
        asking = {call: call.need.answers for call in reversed(calls) if isinstance(call.need, Awaits)}
        done = {call for call, answers in asking.items() if all(answer.coming.done() for answer in answers)}
        beyond: float = math.inf
        for call in calls:
            if call in done:
                if call.held is None:
                    self._go_on(call, call.go_on)
                else:
                    self._with_page(call.held, partial(self._to, call, call.held))
                return True
            if isinstance(call.need, Need):
                page = call.need.page
                if page <= beyond and self.pager.is_resident(page):
                    self._with_page(page, partial(self._to, call, page))
                    return True
                beyond = min(beyond, page)
        if asking:
            with self.clock.wait("cpu-compute"):
                wait([answers[-1].coming for answers in asking.values()], return_when=FIRST_COMPLETED)
        return bool(asking)

    def _to(self, call: Call, page: int, views: Views) -> None:
        """Let a call go on with a page."""
        self._go_on(call, partial(call.resume, page, views))

    def _go_on(self, call: Call, step: Callable[[], None]) -> None:
        """Bring a call's activations back and let it take a step."""
        if self.parking is not None:
            self.parking.unpark(call)
        with self.clock.compute():
            step()
            if call.dead:
                self._ended(call)
        if self.parking is not None:
            self.parking.park(call)
