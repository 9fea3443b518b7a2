import json
import threading
import time
from itertools import pairwise

import pytest

from penstock.memory import clock as clock_module
from penstock.memory.clock import LANES, Clock


def test_busy_seconds_bytes_and_shares():
    clock = Clock()
    with clock.lane("disk→cpu", nbytes=100, what="page 1"):
        time.sleep(0.05)
    time.sleep(0.05)
    summary = clock.summary()
    use = summary["lanes"]["disk→cpu"]
    assert use["bytes"] == 100
    assert 0.045 < use["seconds"] < summary["seconds"]
    assert use["share"] == pytest.approx(use["seconds"] / summary["seconds"])
    assert list(summary["lanes"]) == list(LANES) == list(summary["waits"])
    assert summary["lanes"]["cpu→disk"] == {"seconds": 0, "bytes": 0, "share": 0}


def test_a_summary_since_a_reading_leaves_out_what_was_before():
    clock = Clock()
    with clock.lane("disk→cpu", nbytes=100):
        time.sleep(0.05)
    before = clock.read()
    with clock.lane("disk→cpu", nbytes=7):
        pass
    use = clock.summary(before)["lanes"]["disk→cpu"]
    assert use["bytes"] == 7 and use["seconds"] < 0.04


def test_overlapping_transfers_count_their_time_once():
    clock = Clock()

    def transfer():
        with clock.lane("cpu→gpu", nbytes=5):
            time.sleep(0.1)

    threads = [threading.Thread(target=transfer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    summary = clock.summary()
    assert summary["lanes"]["cpu→gpu"]["bytes"] == 20
    assert 0.09 < summary["lanes"]["cpu→gpu"]["seconds"] <= summary["seconds"]


def test_waits_within_compute_are_not_compute():
    clock = Clock(compute_lane="gpu-compute")
    with clock.compute("layer 0"):
        time.sleep(0.02)
        with clock.wait("disk→cpu"):
            time.sleep(0.1)
    summary = clock.summary()
    computed, waited = summary["lanes"]["gpu-compute"]["seconds"], summary["waits"]["disk→cpu"]["seconds"]
    assert computed > 0.015 and waited > 0.09
    assert computed + waited <= summary["seconds"]
    assert summary["lanes"]["disk→cpu"]["seconds"] == 0


def test_an_open_interval_counts_up_to_now():
    clock = Clock()
    with clock.compute():
        time.sleep(0.03)
        assert clock.summary()["lanes"]["cpu-compute"]["seconds"] > 0.025


def test_a_failed_transfer_moved_nothing():
    clock = Clock()
    with pytest.raises(OSError), clock.lane("disk→cpu", nbytes=9):
        raise OSError
    assert clock.summary()["lanes"]["disk→cpu"]["bytes"] == 0


def test_without_tracing_nothing_accumulates():
    clock = Clock()
    for _ in range(100):
        with clock.lane("disk→cpu"), clock.wait("disk→cpu"):
            pass
    assert clock._events == []


def test_trace_has_named_tracks_whose_slices_never_cross(tmp_path):
    clock = Clock(tracing=True)
    first, second, third = (clock.lane("disk→cpu", nbytes=5, what=f"page {number}") for number in (1, 2, 3))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    third.__enter__()
    second.__exit__(None, None, None)
    third.__exit__(None, None, None)
    with clock.compute("layer"), clock.wait("disk→cpu"):
        time.sleep(0.01)
    clock.write_trace(tmp_path / "trace.json")
    rows = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {row["tid"]: row["args"]["name"] for row in rows if row["ph"] == "M"}
    assert set(names.values()) == {"cpu-compute", "disk→cpu", "disk→cpu (2)"}
    slices = [row for row in rows if row["ph"] == "X"]
    assert {row["name"] for row in slices} == {"layer", "wait for disk→cpu", "page 1", "page 2", "page 3"}
    for track in names:
        spans = sorted((row["ts"], row["ts"] + row["dur"]) for row in slices if row["tid"] == track)
        for (_, stop), (start, later_stop) in pairwise(spans):
            assert start >= stop or later_stop <= stop


def test_a_trace_keeps_so_many_intervals_and_counts_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(clock_module, "MOST_TRACED", 3)
    clock = Clock(tracing=True)
    for number in range(5):
        with clock.lane("disk→cpu", nbytes=1, what=f"page {number}"):
            pass
    assert clock.untraced == 2
    assert clock.summary()["lanes"]["disk→cpu"]["bytes"] == 5
    clock.write_trace(tmp_path / "trace.json")
    rows = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [row["name"] for row in rows] == ["page 0", "page 1", "page 2", "thread_name"]


def test_a_trace_of_nothing_is_json_too(tmp_path):
    Clock(tracing=True).write_trace(tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text()) == {"displayTimeUnit": "ms", "traceEvents": []}


def test_intervals_that_are_told_of_late_count_once():
    clock = Clock()
    zero = clock.read()
    now = time.perf_counter()
    clock.count("disk→cpu", now + 1, now + 3, 10, "page")
    clock.count("disk→cpu", now + 2, now + 4, 10, "page")
    clock.count("disk→cpu", now, now + 1.5, 10, "page")  # ended before
    clock.count("disk→cpu", now + 6, now + 7, 10, "page")
    use = clock.summary(zero)["lanes"]["disk→cpu"]
    assert use["seconds"] == pytest.approx(5) and use["bytes"] == 40


def test_an_interval_told_of_beside_one_that_is_open():
    clock = Clock()
    zero = clock.read()
    with clock.lane("disk→cpu", nbytes=1):
        start = time.perf_counter()
        time.sleep(0.02)
        clock.count("disk→cpu", start - 1, time.perf_counter(), 1, "page")
        assert clock.summary(zero)["lanes"]["disk→cpu"]["seconds"] == pytest.approx(1.02, abs=0.02)
        time.sleep(0.02)
    assert clock.summary(zero)["lanes"]["disk→cpu"]["seconds"] == pytest.approx(1.04, abs=0.02)
