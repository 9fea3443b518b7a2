"""What every lane did, and what the compute lane waited for."""

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from penstock.errors import UserError

Lane = Literal["cpu-compute", "gpu-compute", "disk→cpu", "cpu→gpu", "gpu→cpu", "cpu→disk"]
LANES: tuple[Lane, ...] = get_args(Lane)
_OVERLAPPING = 16  # intervals of a lane that another may overlap
MOST_TRACED = 1 << 18  # intervals that a trace keeps, at about 200 bytes each


class LaneUse(TypedDict):
    """``seconds`` in which at least one interval was open, the ``bytes`` moved, the ``share`` of elapsed."""

    seconds: float
    bytes: int
    share: float


class Wait(TypedDict):
    """``seconds`` in which compute waited for a lane, and their ``share`` of elapsed."""

    seconds: float
    share: float


class Summary(TypedDict):
    """Elapsed ``seconds``, the use of every lane, and compute's waits by the lane waited for."""

    seconds: float
    lanes: dict[Lane, LaneUse]
    waits: dict[Lane, Wait]


@dataclass(frozen=True, slots=True)
class Reading:
    """All counters at one moment: the beginning of what a summary speaks of."""

    at: float
    busy_s: dict[Lane, float]
    nbytes: dict[Lane, int]
    wait_s: dict[Lane, float]


@dataclass(slots=True)
class _Counter:
    """Seconds in which at least one interval was open: overlapping intervals count once.

    latest: those that are counted and that another one may still overlap, for some are told of late.
    """

    seconds: float = 0.0
    nbytes: int = 0
    opened: int = 0
    since: float = 0.0
    latest: list[tuple[float, float]] = field(default_factory=list)

    def open(self, now: float) -> None:
        if self.opened == 0:
            self.since = now
        self.opened += 1

    def close(self, now: float, nbytes: int = 0) -> None:
        self.opened -= 1
        self.nbytes += nbytes
        if self.opened == 0:
            self.add(self.since, now)

    def add(self, start: float, stop: float) -> None:
        """Count an interval that is over."""
        apart = [one for one in self.latest if one[1] < start or one[0] > stop]
        joined = [one for one in self.latest if one not in apart]
        start, stop = min([start, *(one[0] for one in joined)]), max([stop, *(one[1] for one in joined)])
        self.seconds += stop - start - sum(one[1] - one[0] for one in joined)
        self.latest = [*apart[1 - _OVERLAPPING :], (start, stop)]

    def read(self, now: float) -> float:
        if not self.opened:
            return self.seconds
        return (
            self.seconds
            + now
            - self.since
            - sum(max(0.0, stop - max(start, self.since)) for start, stop in self.latest)
        )


@dataclass(frozen=True, slots=True)
class _Event:
    lane: Lane
    what: str
    start: float
    stop: float
    nbytes: int


@dataclass(slots=True)
class Clock:
    """Counts busy intervals of lanes from any thread, in bounded memory; when tracing it keeps the first of them.

    compute_lane: where ``compute()`` counts and whose waits ``wait()`` counts. untraced: intervals that came when
    MOST_TRACED had been kept.
    """

    compute_lane: Lane = "cpu-compute"
    tracing: bool = False
    untraced: int = 0
    _lanes: dict[Lane, _Counter] = field(default_factory=lambda: {lane: _Counter() for lane in LANES})
    _waits: dict[Lane, _Counter] = field(default_factory=lambda: {lane: _Counter() for lane in LANES})
    _events: list[_Event] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _zero: float = field(default_factory=time.perf_counter)

    @contextmanager
    def lane(self, lane: Lane, nbytes: int = 0, what: str = "") -> Iterator[None]:
        """The lane is busy inside; its bytes count when the block ends without an error."""
        start = self._open(self._lanes[lane])
        moved = 0
        try:
            yield
            moved = nbytes
        finally:
            with self._lock:
                stop = time.perf_counter()
                self._lanes[lane].close(stop, moved)
                self._keep(_Event(lane, what or lane, start, stop, moved))

    def count(self, lane: Lane, start: float, stop: float, nbytes: int, what: str) -> None:
        """The lane was busy then, in time.perf_counter's seconds; for what nobody could watch."""
        with self._lock:
            self._lanes[lane].add(start, stop)
            self._lanes[lane].nbytes += nbytes
            self._keep(_Event(lane, what, start, stop, nbytes))

    def compute(self, what: str = "") -> AbstractContextManager[None]:
        """The compute lane is busy inside, less the waits within."""
        return self.lane(self.compute_lane, what=what)

    @contextmanager
    def wait(self, lane: Lane) -> Iterator[None]:
        """The compute lane waits for another lane inside; inside ``compute()`` it stops being busy meanwhile."""
        computing = self._lanes[self.compute_lane]
        with self._lock:
            start = time.perf_counter()
            interrupts = computing.opened > 0
            if interrupts:
                computing.close(start)
            self._waits[lane].open(start)
        try:
            yield
        finally:
            with self._lock:
                stop = time.perf_counter()
                self._waits[lane].close(stop)
                if interrupts:
                    computing.open(stop)
                self._keep(_Event(self.compute_lane, f"wait for {lane}", start, stop, 0))

    def read(self) -> Reading:
        """All counters now, intervals still open included."""
        with self._lock:
            now = time.perf_counter()
            return Reading(
                now,
                {lane: counter.read(now) for lane, counter in self._lanes.items()},
                {lane: counter.nbytes for lane, counter in self._lanes.items()},
                {lane: counter.read(now) for lane, counter in self._waits.items()},
            )

    def summary(self, since: Reading | None = None) -> Summary:
        """What happened since a reading, or since the clock was made."""
        nothing = dict.fromkeys(LANES, 0)
        since = since or Reading(self._zero, dict.fromkeys(LANES, 0.0), nothing, dict.fromkeys(LANES, 0.0))
        now = self.read()
        elapsed = now.at - since.at

        def share(seconds: float) -> float:
            return seconds / elapsed if elapsed > 0 else 0.0

        busy = {lane: now.busy_s[lane] - since.busy_s[lane] for lane in LANES}
        waited = {lane: now.wait_s[lane] - since.wait_s[lane] for lane in LANES}
        return {
            "seconds": elapsed,
            "lanes": {
                lane: {
                    "seconds": busy[lane],
                    "bytes": now.nbytes[lane] - since.nbytes[lane],
                    "share": share(busy[lane]),
                }
                for lane in LANES
            },
            "waits": {lane: {"seconds": waited[lane], "share": share(waited[lane])} for lane in LANES},
        }

    def write_trace(self, path: str | os.PathLike[str]) -> None:
        """Writes what was traced as Chrome's JSON (Perfetto reads it): a track per lane, more where work overlaps."""
        with self._lock:
            events = sorted(self._events, key=lambda event: (event.start, -event.stop))
        with Path(path).open("w", encoding="utf-8") as file:
            file.write('{"displayTimeUnit": "ms", "traceEvents": [')
            for number, row in enumerate(self._rows(events)):
                file.write((",\n" if number else "\n") + json.dumps(row, ensure_ascii=False))
            file.write("\n]}\n")

    def _rows(self, events: Sequence[_Event]) -> Iterator[dict[str, Any]]:
        """The rows of a trace, lane by lane; events in the order of their starts, of those the longest first."""
        for number, lane in enumerate(LANES):
            tracks: list[list[_Event]] = []
            for event in (event for event in events if event.lane == lane):
                place = next((at for at, open_ones in enumerate(tracks) if _fits(open_ones, event)), len(tracks))
                if place == len(tracks):
                    tracks.append([])
                tracks[place].append(event)
                yield _row(event, self._zero, number * 100 + place)
            for place in range(len(tracks)):
                name = lane if place == 0 else f"{lane} ({place + 1})"
                names = {"name": "thread_name", "ph": "M", "pid": 1, "tid": number * 100 + place}
                yield {**names, "args": {"name": name}}

    def _open(self, counter: _Counter) -> float:
        with self._lock:
            now = time.perf_counter()
            counter.open(now)
            return now

    def _keep(self, event: _Event) -> None:
        if not self.tracing:
            return
        if len(self._events) < MOST_TRACED:
            self._events.append(event)
        else:
            self.untraced += 1


def check_trace(path: str | os.PathLike[str]) -> None:
    """Raise UserError where no trace can be written to ``path``: it is written last, and must not cost a run."""
    folder = Path(path).absolute().parent
    if Path(path).is_dir() or not folder.is_dir():
        raise UserError(f"--trace {path} is not a file in a directory that exists; create the directory first")
    if not os.access(path if Path(path).exists() else folder, os.W_OK):
        raise UserError(f"--trace {path} may not be written to: give another file")


def _fits(track: list[_Event], event: _Event) -> bool:
    """Whether the event follows or nests in what is open on the track; drops what has ended from it."""
    while track and track[-1].stop <= event.start:
        track.pop()
    return not track or event.stop <= track[-1].stop


def _row(event: _Event, zero: float, track: int) -> dict[str, Any]:
    return {
        "name": event.what,
        "cat": event.lane,
        "ph": "X",
        "ts": round((event.start - zero) * 1e6, 3),
        "dur": round((event.stop - event.start) * 1e6, 3),
        "pid": 1,
        "tid": track,
        "args": {"bytes": event.nbytes},
    }
