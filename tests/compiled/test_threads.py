"""Work cut among threads: all of it is done, and none goes on when the call is over."""

import time
from threading import Lock

import pytest

from penstock.compiled import threads
from penstock.compiled.threads import in_threads, in_turn


@pytest.fixture(params=["torch's", "its own"], autouse=True)
def team(request, monkeypatch):
    if request.param == "its own":
        monkeypatch.setattr(threads, "_team", lambda: None)
    elif threads._team() is None:
        pytest.skip("torch computes with other threads than OpenMP's here")


def test_every_part_is_done_once():
    done, lock = [], Lock()

    def work(start, stop):
        with lock:
            done.append((start, stop))

    in_threads(work, [0, 3, 5, 9])
    assert sorted(done) == [(0, 3), (3, 5), (5, 9)]
    done.clear()
    in_turn(lambda thread, start, stop: work(start, stop), range(0, 101, 5), threads=3)
    assert sorted(done) == [(start, start + 5) for start in range(0, 100, 5)]


def test_an_error_of_any_thread_is_raised():
    def work(start, stop):
        if start:
            raise ValueError(f"part {start}")

    with pytest.raises(ValueError, match="part 1"):
        in_threads(work, [0, 1, 2])
    with pytest.raises(ValueError, match="part 1"):
        in_turn(lambda thread, start, stop: work(start, stop), [0, 1, 2], threads=2)


def test_an_interrupted_call_ends_when_its_threads_have():
    ended = []

    def work(start, stop):
        if start == 0:
            time.sleep(0.02)
            raise KeyboardInterrupt
        time.sleep(0.05)
        ended.append(start)

    with pytest.raises(KeyboardInterrupt):
        in_threads(work, [0, 1, 2])
    assert ended == [1]


def test_what_an_interrupted_call_has_not_begun_is_left():
    begun = []

    def work(thread, start, stop):
        if thread == 0:
            time.sleep(0.02)
            raise KeyboardInterrupt
        begun.append(start)
        time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt):
        in_turn(work, range(100), threads=2)
    number = len(begun)
    assert number < 10
    time.sleep(0.1)
    assert len(begun) == number


def test_threads_are_numbered_from_zero():
    seen, lock = set(), Lock()

    def work(thread, start, stop):
        with lock:
            seen.add(thread)
        time.sleep(0.005)

    in_turn(work, range(9), threads=2)
    assert seen == {0, 1}
