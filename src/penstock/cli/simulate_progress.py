"""Progress of a simulation on stderr: a bar on a terminal, a line now and then elsewhere, JSON lines for programs."""

import json
import time
from collections.abc import Callable
from typing import TextIO

from penstock.units import format_seconds

_LIVE_EVERY_S = 0.1
_LINE_EVERY_S = 10.0
_JSON_EVERY_S = 1.0


class SimulationProgress:
    """Shows notes at once and the part that is done at intervals; leaves the terminal as it was found."""

    def __init__(self, stream: TextIO, as_json: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._as_json, self._clock = stream, as_json, clock
        self._live = stream.isatty() and not as_json
        self._every_s = _LIVE_EVERY_S if self._live else _JSON_EVERY_S if as_json else _LINE_EVERY_S
        self._began_s: float | None = None
        self._next_s = clock() + (0.0 if self._live or as_json else self._every_s)
        self._drawn = False

    def note(self, text: str) -> None:
        """A line of its own."""
        self.close()
        self._print(json.dumps({"kind": "note", "text": text}) if self._as_json else text)

    def wait(self, text: str, is_long: bool = False) -> None:
        """What goes on while no step is done: in place on a terminal; elsewhere a note, of what takes long alone."""
        if self._live:
            self._draw(f"{text} …")
        elif is_long:
            self.note(text)

    def steps(self, done: int, total: int) -> None:
        """So many token steps are done of those of all runs; cheap enough to be told often."""
        now = self._clock()
        if self._began_s is None:
            self._began_s = now
        if now < self._next_s or not total:
            return
        self._next_s = now + self._every_s
        part, spent_s = done / total, now - self._began_s
        left_s = spent_s * (1 - part) / part if part and spent_s else None
        if self._as_json:
            self._print(json.dumps({"kind": "simulate", "done": done, "total": total, "eta_s": left_s}))
            return
        told = f"{100 * part:3.0f} %" + (f"   {format_seconds(left_s)} left" if left_s is not None else "")
        if self._live:
            filled = round(30 * part)
            self._draw(f"{'━' * filled}{'╌' * (30 - filled)} {told}")
        else:
            self._print(told.strip())

    def close(self) -> None:
        """Take away what is drawn in place; calling it again does nothing."""
        if self._drawn:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()
            self._drawn = False

    def _draw(self, text: str) -> None:
        self._stream.write(f"\r\x1b[2K {text}")
        self._stream.flush()
        self._drawn = True

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)
