"""A kernel's work cut among threads: all of it is done, once, and none goes on when the call is over."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numba
import numpy as np
import pytest
from numba import types

from penstock.compiled import threads
from penstock.compiled.kernels import compiled
from penstock.compiled.threads import Shared, Turns, cut_rows, even, share

_usleep = types.ExternalFunction("usleep", types.int32(types.int32))


@numba.njit
def _count_parts(added, done, sleep_us, start, stop):
    for at in range(start, stop):
        done[at] += added[at % len(added)]
    if sleep_us:
        _usleep(sleep_us)


def _count(added, done, sleep_us, cuts, turns, threads, team):
    done[:] += 1  # once, whatever the number of threads
    share(_count_parts, (added, done, sleep_us), cuts, turns, threads, team)
    done[:] += 1


@numba.njit
def _fail_parts(done, start, stop):
    if start == 6:
        raise ValueError("a part that cannot be done")
    done[start:stop] += 1


def _fail(done, cuts, turns, threads, team):
    share(_fail_parts, (done,), cuts, turns, threads, team)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module")
def count(directory):
    numbers = types.Array(types.int64, 1, "C")
    signature = types.void(types.UniTuple(types.int64, 3), numbers, types.int32, *Turns)
    return Shared(compiled(_count, signature, directory=directory))


@pytest.fixture(params=["torch's", "its own"], autouse=True)
def team(request, monkeypatch):
    if request.param == "its own":
        monkeypatch.setattr(threads, "_team", lambda: threads._address(threads._by_pool))
    elif threads._team() == threads._address(threads._by_pool):
        pytest.skip("torch computes with other threads than OpenMP's here")


@pytest.mark.parametrize("parts", [1, 2, 7, 100])
@pytest.mark.parametrize("number", [1, 2, 5])
def test_every_part_is_done_once(count, parts, number):
    done = np.zeros(100, np.int64)
    count((10, 20, 30), done, 0, cuts=even(100, parts), threads=number)
    assert done.tolist() == [2 + 10 * (1 + at % 3) for at in range(100)]


def test_parts_go_to_all_threads(count):
    done = np.zeros(8, np.int64)
    start = time.perf_counter()
    count((1, 1, 1), done, 50_000, cuts=even(8, 8), threads=4)
    assert time.perf_counter() - start < 0.3  # of 0.4 s that one thread would sleep
    assert (done == 3).all()


def test_a_part_that_fails_is_told(directory):
    fail = Shared(compiled(_fail, types.void(types.Array(types.int64, 1, "C"), *Turns), directory=directory))
    for number in (1, 2):
        with pytest.raises(MemoryError, match="work is not done"):
            fail(np.zeros(9, np.int64), cuts=even(9, 3), threads=number)


def test_a_team_that_does_nothing_is_found_out(count, monkeypatch):
    idle = threads._Fork(lambda task, given, number, flags: None)
    monkeypatch.setattr(threads, "_team", lambda: threads._address(idle))
    with pytest.raises(MemoryError, match="work is not done"):
        count((1, 1, 1), np.zeros(9, np.int64), 0, cuts=even(9, 3), threads=2)


def test_several_threads_call_at_once(count):
    def call(_):
        done = np.zeros(50, np.int64)
        count((1, 1, 1), done, 0, cuts=even(50, 10), threads=2)
        return (done == 3).all()

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(call, range(200)))


def test_an_interrupted_call_is_over_when_its_parts_are(count):
    done = np.zeros(4, np.int64)
    timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        count((1, 1, 1), done, 60_000, cuts=even(4, 4), threads=2)
        for _ in range(1000):  # the next instructions of Python at the latest
            pass
    timer.join()
    assert (done == 3).all()


def test_even_cuts():
    assert even(10, 3).tolist() == [0, 3, 6, 10]
    assert even(20, 2, 8).tolist() == [0, 8, 20]
    assert even(0, 1).tolist() == [0, 0]


@pytest.mark.parametrize(("reads", "heads", "parts"), [([1], 8, 4), ([1, 500, 3, 7], 2, 6), ([5] * 70, 3, 16)])
def test_rows_are_cut_by_what_they_read(reads, heads, parts):
    cuts = np.full(parts + 1, -1, np.int64)
    cut_rows(np.array(reads), heads, cuts)
    assert cuts[0] == 0 and cuts[-1] == len(reads) * heads and (np.diff(cuts) >= 0).all()
    each = np.repeat(reads, heads)
    shares = [each[start:stop].sum() for start, stop in pairwise(cuts)]
    assert max(shares) <= each.sum() / parts + max(reads)
