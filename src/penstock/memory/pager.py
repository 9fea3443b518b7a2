"""The weight pager: pages where their home says, and a ring of slots through which the others stream in known order."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from queue import SimpleQueue

import torch

from penstock.errors import UserError
from penstock.memory.buffers import view
from penstock.memory.clock import Clock, Lane
from penstock.memory.device import Device
from penstock.memory.direct import DirectReader
from penstock.memory.pager_room import PagerRoom
from penstock.memory.slot import Slot
from penstock.model.pages import Page
from penstock.plan.policy import Tier
from penstock.quant.packed import Packed

Views = dict[tuple[str, int], torch.Tensor | Packed]
Convert = Callable[[Page, torch.Tensor], None]


class Pager:
    """Serves pages to compute: ``acquire``, use the views, ``release``.

    pages: ``pages[i].index == i``. homes: the tier each page rests on; those of the device's own tier are resident, the
    others pass through a ring of ``slots`` (1: load, then compute). convert: fills a page that has no extents. reader:
    what pages are read with; others may read with it too while the pager is open, and one that was given stays open.

    The order given to ``expect`` is only a matter of speed: whatever is acquired is served. One thread acquires and
    releases; a load's error is raised by the ``acquire`` that needs the page, and the next one tries again.
    """

    def __init__(
        self,
        pages: Sequence[Page],
        homes: Sequence[Tier],
        device: Device,
        slots: int,
        clock: Clock,
        convert: Convert | None = None,
        reader: DirectReader | None = None,
    ) -> None:
        self._room = PagerRoom.of(pages, homes, device.compute_tier, slots)
        self._pages, self._homes = tuple(pages), tuple(homes)
        self._device, self._clock, self._convert = device, clock, convert
        self.reader = reader or DirectReader()
        self._owns_reader = reader is None
        self._resident: dict[int, Views] = {}
        self._hosted: dict[int, torch.Tensor] = {}
        self._staging: SimpleQueue[torch.Tensor] = SimpleQueue()
        self._slots: list[Slot] = []
        self._where: dict[int, Slot] = {}
        # The order repeats for ever; pages at positions [head, cursor) are fetched or being fetched and not used yet.
        self._order: list[int] = []
        self._positions: dict[int, list[int]] = {}
        self._head = self._cursor = 0
        self._closed = False
        self._pool = ThreadPoolExecutor(self._room.loaders, thread_name_prefix="penstock-page")

    def start(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Allocates everything and reads the resident pages; ``progress(done, total)`` speaks of their bytes."""
        room, device = self._room, self._device
        fast, host = device.alloc(room.fast_bytes), device.host_alloc(room.host_bytes)
        for _ in range(room.loaders if room.staging_bytes else 0):
            self._staging.put(device.host_alloc(room.staging_bytes))
        done, total = 0, room.fast_bytes + room.host_bytes
        fast_at = host_at = 0
        for page, home in zip(self._pages, self._homes, strict=True):
            if home == device.compute_tier:
                place = fast[fast_at : fast_at + page.nbytes]
                fast_at += page.nbytes
                self._bring(page, place)
                self._resident[page.index] = _views(page, place)
            elif home == "cpu":
                place = host[host_at : host_at + page.nbytes]
                host_at += page.nbytes
                self._read(page, place)
                self._hosted[page.index] = place
            else:
                continue
            done += page.nbytes
            if progress:
                progress(done, total)
        ring = device.alloc(room.slots * room.slot_bytes)
        self._slots = [Slot(ring[at * room.slot_bytes :][: room.slot_bytes]) for at in range(room.slots)]
        self._prefetch()

    def expect(self, order: Sequence[int]) -> None:
        """Says in which order pages will be acquired from now on, over and over."""
        self._order = [index for index in order if self._homes[index] != self._device.compute_tier]
        self._positions = {}
        for position, index in enumerate(self._order):
            self._positions.setdefault(index, []).append(position)
        self._head = self._cursor = 0
        self._prefetch()

    def acquire(self, index: int) -> Views:
        """The page's tensors by (parameter, first row), valid until ``release(index)``; waits until they are there."""
        if index in self._resident:
            return self._resident[index]
        lane: Lane = "cpu→gpu" if index in self._hosted else "disk→cpu"
        slot = self._hold(index, lane)
        try:
            self._await(slot, lane)
        except BaseException:
            self._let_go(slot)
            raise
        return _views(self._pages[index], slot.buffer)

    def is_resident(self, index: int) -> bool:
        """Whether a page rests where it is used, so that it costs nothing to serve it again."""
        return index in self._resident

    def at_rest(self, index: int) -> Views | None:
        """The page's tensors where they rest in memory, the device's or the host's; None where that is the disk."""
        if index in self._hosted:
            return _views(self._pages[index], self._hosted[index])
        return self._resident.get(index)

    def release(self, index: int) -> None:
        """Ends the use of a page; its slot is filled anew once the compute issued so far has read it."""
        if index in self._resident:
            return
        slot = self._where.get(index)
        if slot is None or slot.holds == 0:
            raise ValueError(f"page {index} is not held")
        slot.last_use = self._device.mark()
        self._let_go(slot)

    def close(self) -> None:
        """Ends loads and threads, and lets go of all memory; views handed out keep theirs alive."""
        self._closed = True
        for slot in self._slots:
            slot.count(self._clock)
            slot.give_up()
        self._pool.shutdown(cancel_futures=True)
        for slot in self._slots:
            slot.wait()
        if self._owns_reader:
            self.reader.close()
        self._slots, self._where, self._resident, self._hosted = [], {}, {}, {}
        self._staging = SimpleQueue()

    def _advance(self, index: int) -> None:
        """Moves the head behind an acquisition, giving up what was fetched for positions it skips."""
        passed = self._ahead()
        if index in passed:
            passed = passed[: passed.index(index)]
            self._head += len(passed) + 1
        else:
            here = self._head % len(self._order) if self._order else 0
            later = [position for position in self._positions.get(index, []) if position >= here]
            if later:
                self._head += later[0] - here + 1
            else:  # it was not foreseen, or is an earlier page again: the order goes on from where it was
                passed = []
            self._cursor = self._head
        for page in passed:
            slot = self._where.get(page)  # none where its load went wrong
            if slot and slot.loading and not slot.holds:
                slot.give_up()
                self._forget(slot)

    def _hold(self, index: int, lane: Lane) -> Slot:
        """The slot that has or will have the page, held; waits for one to become free."""
        if self._closed:
            raise RuntimeError("the pager is closed")
        self._advance(index)
        while (slot := self._where.get(index) or self._load_now(index)) is None:
            if all(slot.holds for slot in self._slots):
                raise RuntimeError(f"page {index}: all {len(self._slots)} slots are held; release one first")
            with self._clock.wait(lane):
                next(slot for slot in self._slots if not slot.holds).wait()
        slot.holds += 1
        try:
            self._prefetch()
        except BaseException:
            slot.holds -= 1
            raise
        return slot

    def _await(self, slot: Slot, lane: Lane) -> None:
        """Until a slot's page is there; raises what went wrong, and whoever asks next tries again."""
        assert slot.load is not None
        try:
            with nullcontext() if slot.load.done() else self._clock.wait(lane):
                slot.load.result()
        except Exception:
            self._forget(slot)
            raise
        slot.count(self._clock)

    def _forget(self, slot: Slot) -> None:
        """What a slot holds or is being given is not its page any more."""
        if slot.page is not None:
            del self._where[slot.page]
        slot.page = slot.uncounted = None

    def _let_go(self, slot: Slot) -> None:
        slot.holds -= 1
        self._prefetch()

    def _ahead(self) -> list[int]:
        """The pages fetched or being fetched and not used yet, in order."""
        return [self._order[position % len(self._order)] for position in range(self._head, self._cursor)]

    def _distance(self, index: int | None) -> int:
        """How many acquisitions from the cursor to the next one of this page; very far for what is not expected."""
        positions = self._positions.get(index, []) if index is not None else []
        count = len(self._order)
        return min(((position - self._cursor) % count for position in positions), default=count)

    def _free_slot(self) -> Slot | None:
        """A slot that nobody holds and no page fetched ahead needs: an empty one, or the one needed again last."""
        ahead = self._ahead()
        free = [slot for slot in self._slots if not slot.holds and not slot.loading and slot.page not in ahead]
        return max(free, key=lambda slot: (slot.page is None, self._distance(slot.page)), default=None)

    def _load_now(self, index: int) -> Slot | None:
        """Begins to load a page that was not fetched ahead, in place of one that was if need be."""
        slot = self._free_slot()
        if slot is None:
            self._cursor = self._head
            slot = self._free_slot()
        if slot:
            self._load(slot, index)
        return slot

    def _prefetch(self) -> None:
        """Gives free slots to the pages that come next."""
        while self._order and self._slots and not self._closed:
            index = self._order[self._cursor % len(self._order)]
            if index in self._ahead():
                return
            if index not in self._where:
                slot = self._free_slot()
                if slot is None:
                    return
                self._load(slot, index)
            self._cursor += 1

    def _load(self, slot: Slot, index: int) -> None:
        slot.count(self._clock)
        self._forget(slot)
        page = self._pages[index]
        if page.extents is None or self._device.compute_tier != "cpu":
            slot.load = self._pool.submit(self._fill, slot, page)
        else:
            try:
                slot.load = arrival = self.reader.begin(page.extents, slot.buffer[: page.nbytes])
                slot.uncounted = arrival, page.name
            except UserError as error:  # is for whoever needs the page
                failed: Future[None] = Future()
                failed.set_exception(error)
                slot.load = failed
        # at last, so that an interruption never leaves a slot named for a page that is not on its way there
        slot.page, self._where[index] = index, slot

    def _fill(self, slot: Slot, page: Page) -> None:
        """One load, in a thread of the pool; its future carries an error to ``acquire``."""
        if slot.last_use:
            slot.last_use.wait_on_copy()
        self._bring(page, slot.buffer[: page.nbytes])

    def _bring(self, page: Page, place: torch.Tensor) -> None:
        """Copies a page to the fast tier from where it rests, through a staging buffer if it must."""
        if self._device.compute_tier == "cpu":
            self._read(page, place)
        elif page.index in self._hosted:
            self._upload(page, self._hosted[page.index], place)
        else:
            with ExitStack() as borrowed:
                staging = self._staging.get()
                borrowed.callback(self._staging.put, staging)
                self._read(page, staging[: page.nbytes])
                self._upload(page, staging[: page.nbytes], place)

    def _upload(self, page: Page, source: torch.Tensor, place: torch.Tensor) -> None:
        with self._clock.lane("cpu→gpu", page.nbytes, page.name):
            self._device.upload(source, place).finish()

    def _read(self, page: Page, place: torch.Tensor) -> None:
        if page.extents is not None:
            with self._clock.lane("disk→cpu", sum(extent.nbytes for extent in page.extents), page.name):
                self.reader.read(page.extents, place)
        elif self._convert:
            with self._clock.lane("disk→cpu", page.nbytes, page.name):
                self._convert(page, place)
        else:
            raise ValueError(f"page {page.name} has no extents, and nothing converts it")


def _views(page: Page, buffer: torch.Tensor) -> Views:
    return {(piece.param, piece.start): view(buffer, piece) for piece in page.slices}
