import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import UserError
from penstock.memory.clock import Clock
from penstock.memory.device import CpuDevice, EmulatedGpu
from penstock.memory.direct import DirectReader
from penstock.memory.pager import Pager
from penstock.memory.pager_room import PagerRoom
from penstock.model.pages import SECTOR, Extent, Page, Slice

COUNT = 12
NBYTES = [SECTOR * (1 + index % 3) for index in range(COUNT)]
CONVERTED = 5  # this page has no extents


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("pager") / "weights.bin"
    path.write_bytes(os.urandom(COUNT * 4 * SECTOR))
    return path


@pytest.fixture(scope="module")
def pages(weights):
    """Two parameters a page, the second one at an odd offset; some pages lie askew in their file."""
    result = []
    for index in range(COUNT):
        offset, half = index * 4 * SECTOR + (72 if index % 4 == 3 else 0), NBYTES[index] // 2
        slices = (
            Slice(f"{index}.a", 0, 8, (8, half // 16), "int16", 0, half),
            Slice(f"{index}.b", 4, 5, (1, 50), "int32", half + 1, 200),
        )
        extents = (Extent(str(weights), offset, half, 0), Extent(str(weights), offset + half, half, half))
        result.append(
            Page(index, f"page {index}", "layer", index, slices, NBYTES[index], None if index == CONVERTED else extents)
        )
    return result


@pytest.fixture(scope="module")
def truth(weights, pages):
    content = weights.read_bytes()

    def bytes_of(page):
        if page.extents is None:
            return bytes(range(256)) * (page.nbytes // 256)
        return b"".join(content[extent.offset : extent.offset + extent.nbytes] for extent in page.extents)

    def tensor(page, piece):
        raw = bytearray(bytes_of(page)[piece.offset : piece.offset + piece.nbytes])
        return torch.frombuffer(raw, dtype=getattr(torch, piece.dtype)).view(piece.shape)

    return [{(piece.param, piece.start): tensor(page, piece) for piece in page.slices} for page in pages]


@pytest.fixture(scope="module")
def reader():
    reader = DirectReader(threads=2)
    yield reader
    reader.close()


def convert(page, buffer):
    buffer.copy_(torch.arange(256, dtype=torch.uint8).repeat(page.nbytes // 256))


class Begun:
    """A load in a thread that can fail and take its time."""

    def __init__(self, future, nbytes):
        self.done, self.result, self.nbytes = future.done, future.result, nbytes
        self.started, self.given_up, self._future = time.perf_counter(), False, future

    def cancel(self):
        self.given_up = True
        self._future.cancel()

    @property
    def span(self):
        return self.started, time.perf_counter()


class Recorder:
    """A reader that notes what it reads, takes its time about it, and fails when told to."""

    def __init__(self, reader, delay=lambda: 0.0):
        self.reader, self.delay, self.loads, self.fail = reader, delay, [], set()
        self.pool = ThreadPoolExecutor(2)

    def begin(self, extents, buffer):
        return Begun(self.pool.submit(self.read, extents, buffer), sum(extent.nbytes for extent in extents))

    def close(self):
        self.pool.shutdown()

    def read(self, extents, buffer, start=0):
        page = extents[0].offset // (4 * SECTOR)
        self.loads.append(page)
        buffer.fill_(255)  # whoever still reads the slot's last page will notice
        time.sleep(self.delay())
        if page in self.fail:
            raise UserError(f"page {page} cannot be read")
        return self.reader.read(extents, buffer, start)


class Kit:
    """A started pager on its device, closed at the end."""

    def __init__(self, pages, homes, device, slots, reader):
        self.device, self.clock = device, Clock("gpu-compute" if device.compute_tier == "gpu" else "cpu-compute")
        self.pager = Pager(pages, homes, device, slots, self.clock, convert, reader)

    def __enter__(self):
        self.pager.start()
        return self.pager

    def __exit__(self, *_):
        self.pager.close()
        self.device.close()


def check(views, expected):
    assert views.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(views[key], tensor), key


HOMES = {"cpu": ["cpu", "disk"], "gpu": ["gpu", "cpu", "disk"]}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_acquired_is_right(pages, truth, reader, data):
    tier = data.draw(st.sampled_from(["cpu", "gpu"]))
    device = CpuDevice() if tier == "cpu" else EmulatedGpu(data.draw(st.sampled_from([5e7, 1e9])))
    homes = data.draw(st.lists(st.sampled_from(HOMES[tier]), min_size=COUNT, max_size=COUNT))
    slots = data.draw(st.integers(1, 4))
    dice = random.Random(data.draw(st.integers(0, 1000)))
    recorder = Recorder(reader, delay=lambda: dice.choice([0, 0, 0.0005, 0.002]))
    with Kit(pages, homes, device, slots, recorder) as pager:
        for _ in range(data.draw(st.integers(1, 3))):
            if data.draw(st.booleans()):
                pager.expect(data.draw(st.lists(st.integers(0, COUNT - 1), max_size=15)))
            sweep = data.draw(st.one_of(st.just(list(range(COUNT))), st.lists(st.integers(0, COUNT - 1), max_size=15)))
            for index in sweep:
                check(pager.acquire(index), truth[index])
                if dice.random() < 0.3:
                    time.sleep(0.001)  # prefetching goes on, and must leave the held page alone
                views = pager.acquire(index)
                pager.release(index)
                check(views, truth[index])
                pager.release(index)


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
@pytest.mark.parametrize("tier", ["cpu", "gpu"])
def test_each_streamed_page_is_read_once_a_sweep(pages, truth, reader, slots, tier):
    homes = ["cpu" if index % 3 == 0 else "disk" for index in range(COUNT)]
    recorder = Recorder(reader)
    device = CpuDevice() if tier == "cpu" else EmulatedGpu(1e9)
    streamed = [index for index in range(COUNT) if homes[index] == "disk" and index != CONVERTED]
    with Kit(pages, homes, device, slots, recorder) as pager:
        recorder.loads.clear()
        for _ in range(3):
            pager.expect(range(COUNT))
            for index in range(COUNT):
                check(pager.acquire(index), truth[index])
                pager.release(index)
    loads = Counter(recorder.loads)  # some are for a fourth sweep, and a slot may keep its page for the next one
    assert set(loads) == set(streamed) and max(loads.values()) <= 4
    assert 3 * (len(streamed) - slots) < loads.total() <= 3 * len(streamed) + slots


def test_prefetching_goes_on_into_the_next_sweep(pages, reader):
    recorder = Recorder(reader)
    with Kit(pages, ["disk"] * COUNT, CpuDevice(), 3, recorder) as pager:
        pager.expect([0, 1, 2, 3])
        for index in range(4):
            pager.acquire(index)
            pager.release(index)
        deadline = time.monotonic() + 5
        while len(recorder.loads) < 7 and time.monotonic() < deadline:
            time.sleep(0.005)
        assert sorted(recorder.loads[4:]) == [0, 1, 2]
        pager.expect([0, 1, 2, 3])
        pager.acquire(0)
        pager.release(0)
    assert recorder.loads.count(0) == 2


def test_pages_that_all_fit_the_ring_are_read_once(pages, truth, reader):
    recorder = Recorder(reader)
    homes = ["disk" if index in (2, 7) else "cpu" for index in range(COUNT)]
    with Kit(pages, homes, CpuDevice(), 4, recorder) as pager:
        recorder.loads.clear()
        pager.expect(range(COUNT))
        for index in list(range(COUNT)) * 3:
            check(pager.acquire(index), truth[index])
            pager.release(index)
    assert sorted(recorder.loads) == [2, 7]


def test_asking_for_an_earlier_page_again_costs_one_load(pages, truth, reader):
    recorder = Recorder(reader)
    with Kit(pages, ["disk"] * COUNT, CpuDevice(), 2, recorder) as pager:
        order = [index for index in range(COUNT) if index != CONVERTED]
        pager.expect(order)
        for index in [0, 1, 2, 3, 4, 1, 6, 7, 8, 9, 10, 11]:
            check(pager.acquire(index), truth[index])
            pager.release(index)
    assert recorder.loads.count(1) == 2
    assert len([page for page in recorder.loads if page > 1]) <= len(order)  # at most one evicted page came again


def test_pages_that_are_passed_are_given_up(pages, truth, reader):
    recorder = Recorder(reader, delay=lambda: 0.1)  # of which two are read at a time
    with Kit(pages, ["disk"] * COUNT, CpuDevice(), 4, recorder) as pager:
        pager.expect([0, 1, 2, 3, 4, 6, 7])
        check(pager.acquire(0), truth[0])
        second = pager._where[2].load
        check(pager.acquire(3), truth[3])  # 1 and 2 are left, being read or not
        assert second.given_up
        assert pager._where.get(2) is None
        for index in (4, 6, 7):
            check(pager.acquire(index), truth[index])
            pager.release(index)
        for index in (0, 3):
            pager.release(index)
        check(pager.acquire(2), truth[2])
        pager.release(2)


def test_what_the_clock_is_told(pages, reader):
    with Kit(pages, ["disk"] * COUNT, CpuDevice(), 2, reader) as pager:
        order = [index for index in range(COUNT) if index != CONVERTED]
        pager.expect(order)
        start = time.perf_counter()
        for index in order:
            pager.acquire(index)
            pager.release(index)
        use = pager._clock.summary()["lanes"]["disk→cpu"]
        assert sum(NBYTES[index] for index in order) <= use["bytes"]
        assert 0 < use["seconds"] <= time.perf_counter() - start + 0.5


def test_one_slot_loads_and_computes_in_turn(pages, reader):
    recorder = Recorder(reader)
    with Kit(pages, ["disk"] * COUNT, CpuDevice(), 1, recorder) as pager:
        pager.expect([0, 1, 2])
        pager.acquire(0)
        time.sleep(0.03)
        assert recorder.loads == [0]
        with pytest.raises(RuntimeError, match="all 1 slots are held"):
            pager.acquire(1)
        pager.release(0)
        pager.acquire(1)
        pager.release(1)


def test_a_load_that_ends_while_a_slot_is_looked_for_leaves_it_free(pages, truth, reader, monkeypatch):
    with Kit(pages, ["disk"] * COUNT, CpuDevice(), 1, Recorder(reader, delay=lambda: 0.05)) as pager:
        pager.expect([0, 1])
        load_now = pager._load_now

        def late(index):
            found = load_now(index)
            while pager._slots[0].loading:  # it ends just now
                time.sleep(0.001)
            return found

        monkeypatch.setattr(pager, "_load_now", late)
        check(pager.acquire(4), truth[4])
        pager.release(4)


def test_two_slots_overlap_loading_with_use(pages, reader):
    kit = Kit(pages, ["disk"] * COUNT, CpuDevice(), 2, Recorder(reader, delay=lambda: 0.04))
    order = [0, 1, 2, 3, 4, 6]
    with kit as pager:
        pager.expect(order)
        pager.acquire(0)
        pager.release(0)
        before = kit.clock.read()
        for index in order[1:]:
            pager.acquire(index)
            time.sleep(0.07)
            pager.release(index)
        waited = kit.clock.summary(before)["waits"]["disk→cpu"]["seconds"]
    assert waited < 0.15  # without overlap: 5 × 0.04 and more
    assert kit.clock.summary()["waits"]["disk→cpu"]["seconds"] > 0.01
    assert kit.clock.summary()["lanes"]["disk→cpu"]["bytes"] >= sum(NBYTES[index] for index in order)


def test_a_loading_error_surfaces_where_the_page_is_needed_and_passes(pages, truth, reader):
    for slots in (1, 2, 3):
        recorder = Recorder(reader)
        with Kit(pages, ["disk"] * COUNT, CpuDevice(), slots, recorder) as pager:
            recorder.fail = {2}
            pager.expect(range(COUNT))
            for index in (0, 1):
                check(pager.acquire(index), truth[index])
                pager.release(index)
            for _ in range(2):
                with pytest.raises(UserError, match="page 2 cannot be read"):
                    pager.acquire(2)
            check(pager.acquire(3), truth[3])
            pager.release(3)
            recorder.fail = set()
            check(pager.acquire(2), truth[2])
            pager.release(2)


@pytest.mark.parametrize("tier", ["cpu", "gpu"])
def test_random_errors_never_hang_or_corrupt(pages, truth, reader, tier):
    dice = random.Random(3)
    recorder = Recorder(reader, delay=lambda: dice.choice([0, 0.001]))
    with Kit(pages, ["disk"] * COUNT, CpuDevice() if tier == "cpu" else EmulatedGpu(1e9), 3, recorder) as pager:
        pager.expect(range(COUNT))
        for turn in range(150):
            recorder.fail = {dice.randrange(COUNT)}
            index = turn % COUNT if dice.random() < 0.8 else dice.randrange(COUNT)
            try:
                views = pager.acquire(index)
            except UserError:
                continue
            check(views, truth[index])
            pager.release(index)


def test_an_error_at_the_start_leaves_a_pager_that_closes(pages, reader):
    recorder = Recorder(reader)
    recorder.fail = {4}
    threads = threading.active_count()
    kit = Kit(pages, ["cpu"] * COUNT, CpuDevice(), 2, recorder)
    with pytest.raises(UserError):
        kit.pager.start()
    kit.pager.close()
    assert threading.active_count() <= threads


def test_close_ends_threads_and_what_comes_after_is_an_error(pages, reader):
    kit = Kit(pages, ["disk"] * COUNT, CpuDevice(), 4, Recorder(reader, delay=lambda: 0.01))
    with kit as pager:
        pager.expect(range(COUNT))
        pager.acquire(CONVERTED)  # which a thread does
    assert pager._pool._threads
    assert not any(thread.is_alive() for thread in pager._pool._threads)
    with pytest.raises(RuntimeError, match="closed"):
        pager.acquire(0)
    pager.close()


def test_an_interrupted_wait_leaves_the_pager_usable(pages, truth, reader):
    recorder = Recorder(reader, delay=lambda: 0.6)
    with Kit(pages, ["disk"] * COUNT, CpuDevice(), 1, recorder) as pager:
        previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        start = time.perf_counter()
        try:
            with pytest.raises(KeyboardInterrupt):
                pager.acquire(0)
        finally:
            signal.signal(signal.SIGALRM, previous)
        assert time.perf_counter() - start < 0.5
        check(pager.acquire(1), truth[1])
        pager.release(1)


def test_memory_is_as_foretold(pages, reader):
    homes = [["gpu", "cpu", "disk"][index % 3] for index in range(COUNT)]
    sums = {tier: sum(NBYTES[i] for i in range(COUNT) if homes[i] == tier) for tier in ("gpu", "cpu", "disk")}
    largest = max(NBYTES[i] for i in range(COUNT) if homes[i] != "gpu")
    staged = max(NBYTES[i] for i in range(COUNT) if homes[i] != "cpu")
    assert PagerRoom.of(pages, homes, "gpu", 3) == PagerRoom(sums["gpu"], sums["cpu"], 3, largest, 2, staged)
    device = EmulatedGpu(1e9)
    kit = Kit(pages, homes, device, 3, reader)
    with kit:
        assert device.allocated_bytes == sums["gpu"] + 3 * largest


def test_memory_on_a_cpu(pages):
    homes = ["disk"] * 5 + ["cpu"] * (COUNT - 5)
    resident = sum(NBYTES[5:])
    assert PagerRoom.of(pages, homes, "cpu", 2) == PagerRoom(resident, 0, 2, 3 * SECTOR, 2, 0)
    assert PagerRoom.of(pages, ["cpu"] * COUNT, "cpu", 2) == PagerRoom(sum(NBYTES), 0, 0, 0, 1, 0)
    assert PagerRoom.of(pages, ["disk"] + ["cpu"] * (COUNT - 1), "cpu", 4).slots == 1  # is enough


def test_an_embedding_takes_no_slot(pages):
    table = replace(pages[0], kind="embedding", nbytes=100 * SECTOR)
    assert PagerRoom.of([table, *pages[1:]], ["disk"] * COUNT, "cpu", 2).slot_bytes == max(NBYTES[1:])


def test_pages_at_rest_in_memory_can_be_looked_at(pages, reader, truth):
    homes = [["gpu", "cpu", "disk"][index % 3] for index in range(COUNT)]
    with Kit(pages, homes, EmulatedGpu(1e9), 2, reader) as pager:
        for index, home in enumerate(homes):
            views = pager.at_rest(index)
            assert (views is None) == (home == "disk")
            if views is not None:
                check(views, truth[index])


@pytest.mark.parametrize(("homes", "slots"), [(["disk"] * COUNT, 0), (["gpu"] * COUNT, 2), (["disk"], 2)])
def test_what_cannot_be_is_refused(pages, homes, slots):
    with pytest.raises(ValueError, match="slots and homes"):
        PagerRoom.of(pages, homes, "cpu", slots)


def test_progress_counts_resident_bytes(pages, reader):
    kit = Kit(pages, ["cpu", "disk"] * (COUNT // 2), CpuDevice(), 2, reader)
    seen = []
    kit.pager.start(lambda done, total: seen.append((done, total)))
    kit.pager.close()
    total = sum(NBYTES[::2])
    assert seen[-1] == (total, total) and len(seen) == COUNT // 2


def test_release_of_a_page_that_is_not_held(pages, reader):
    with Kit(pages, ["disk"] * COUNT, CpuDevice(), 2, reader) as pager, pytest.raises(ValueError, match="not held"):
        pager.release(0)
