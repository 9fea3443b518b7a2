"""Progress on stderr while the engine runs: live on a terminal, now and then a line elsewhere, JSON lines for programs.

Displays are fed with the engine's events, dictionaries whose ``kind`` is load, note or sweep; kinds they do not know
are passed over.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from penstock.cli import figures
from penstock.units import format_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType

Event = Mapping[str, Any]
Clock = Callable[[], float]

LIVE_INTERVAL_S = 0.1
JSON_INTERVAL_S = 1.0
LINE_INTERVAL_S = 10.0


class Display(Protocol):
    """What shows a run's events until it is closed."""

    def show(self, event: Event) -> None:
        """Take one event; cheap enough to be called after every sweep."""

    def close(self) -> None:
        """Leave the terminal as it was found; calling it again does nothing."""


def display_for(stream: TextIO, as_json: bool) -> Display:
    """The display that suits what stderr is connected to."""
    if as_json:
        return JsonDisplay(stream)
    return LiveDisplay(stream) if stream.isatty() else LineDisplay(stream)


class Pace:
    """Lets an event through when its kind, or what it prepares, is new, or when an interval has passed."""

    def __init__(self, interval_s: float, clock: Clock = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._subject: object = None
        self._next_s = 0.0

    def allows(self, event: Event) -> bool:
        """Whether this event is due."""
        subject, now = (event["kind"], event.get("what")), self._clock()
        if subject == self._subject and now < self._next_s:
            return False
        self._subject, self._next_s = subject, now + self._interval_s
        return True


class JsonDisplay:
    """One JSON object a line, as the engine gives them; sweeps at most once a second."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._pace = Pace(JSON_INTERVAL_S, clock)

    def show(self, event: Event) -> None:
        if event["kind"] == "note" or (event["kind"] in ("load", "sweep") and self._pace.allows(event)):
            print(json.dumps(event), file=self._stream, flush=True)

    def close(self) -> None:
        pass


class LineDisplay:
    """A plain line when something begins and every ten seconds, for log files."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._loads = Pace(LINE_INTERVAL_S, clock)
        self._clock = clock
        self._next_sweep_s = clock() + LINE_INTERVAL_S

    def show(self, event: Event) -> None:
        if event["kind"] == "note":
            self._print(event["text"])
        elif event["kind"] == "load" and self._loads.allows(event):
            self._print(_load_line(event))
        elif event["kind"] == "sweep" and self._clock() >= self._next_sweep_s:
            self._next_sweep_s = self._clock() + LINE_INTERVAL_S
            done = f"{event['prompts_done']:,} of {figures.count(event['prompts'], 'prompt')}"
            self._print(" · ".join([done, *_pace_parts(event), *_state_parts(event)]))

    def close(self) -> None:
        pass

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class LiveDisplay:
    """Two lines that are redrawn in place by rich, without a thread of its own; they vanish at the end.

    A note is shown even then: one that comes last says what of the run failed.
    """

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(
            console=Console(file=stream, highlight=False),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._pace = Pace(LIVE_INTERVAL_S)
        self._closed = False

    def show(self, event: Event) -> None:
        if event["kind"] == "note":
            self._live.console.print(event["text"], style="dim", markup=False)
        elif not self._closed and event["kind"] in ("load", "sweep") and self._pace.allows(event):
            self._live.start()
            self._live.update(_load_view(event) if event["kind"] == "load" else _sweep_view(event), refresh=True)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._live.stop()


class Streamed:
    """The text of a single prompt, written to stdout as it comes."""

    def __init__(self, stream: TextIO, display: Display) -> None:
        self._stream = stream
        self._display = display
        self._written = ""

    def write(self, text: str) -> None:
        """Show new text at once; a live display gives way where both share a terminal."""
        if not text:
            return
        if self._stream.isatty():
            self._display.close()
        self._written += text
        self._stream.write(text)
        self._stream.flush()

    def finish(self, text: str) -> None:
        """Write what of the whole text has not been written yet, and end the line."""
        self.write(text.removeprefix(self._written) if text.startswith(self._written) else "")
        self.end_line()

    def end_line(self) -> None:
        """Put what follows on a line of its own."""
        if not self._written.endswith("\n"):
            self._stream.write("\n")
        self._stream.flush()
        self._written = "\n"

    @property
    def is_open(self) -> bool:
        """Whether the cursor stands at the end of a text."""
        return bool(self._written) and not self._written.endswith("\n")


def width_of(stream: TextIO) -> int:
    """Columns of a terminal, 100 elsewhere."""
    from shutil import get_terminal_size

    return get_terminal_size((100, 24)).columns if stream.isatty() else 100


def _fraction(event: Event) -> float:
    """How much of the work is done: of what is prepared, or tokens of those that may still come."""
    done, rest = (
        (event["done"], event["total"] - event["done"])
        if event["kind"] == "load"
        else (event["tokens_out"], event["tokens_left"])
    )
    return done / (done + rest) if done + rest else 0.0


def _load_line(event: Event) -> str:
    if not event["total"]:
        return f"{event['what']}"
    return f"{event['what']}: {_amount(event)} ({figures.share(_fraction(event))})"


def _amount(event: Event) -> str:
    """What is prepared of the whole."""
    if event.get("unit") == "s":
        return figures.seconds_of(event["done"], event["total"])
    return figures.size_of(event["done"], event["total"])


def _pace_parts(event: Event) -> list[str]:
    planned = event.get("planned_tok_s")
    parts = [f"{figures.speed(event['tok_s'])} tok/s" + (f" (plan {figures.speed(planned)})" if planned else "")]
    if event.get("eta_s") is not None:
        parts.append(f"{format_seconds(event['eta_s'])} left")
    return parts


def _state_parts(event: Event) -> list[str]:
    parts = [figures.count(event["rows"], "row"), f"sweep {event['sweeps']:,}"]
    lane, share = max((event.get("waiting") or {"": 0.0}).items(), key=lambda item: item[1])
    if share >= 0.005:
        parts.append(f"waiting for {figures.link(lane)} {figures.share(share)}")
    return parts + [
        f"{tier} {figures.size_of(used, budget)}" for tier, (used, budget) in event["memory"].items() if used
    ]


def _load_view(event: Event) -> "RenderableType":
    return _bar_line(event["what"], _fraction(event), _amount(event) if event["total"] else "")


def _sweep_view(event: Event) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    done = f"{event['prompts_done']:,} / {event['prompts']:,}"
    bar = _bar_line(done, _fraction(event), "   ".join(_pace_parts(event)))
    return Group(bar, Text(" " + " · ".join(_state_parts(event)), style="dim"))


def _bar_line(label: str, fraction: float, rest: str) -> "RenderableType":
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    grid = Table.grid(padding=(0, 1))
    for _ in range(4):
        grid.add_column(no_wrap=True)
    grid.add_row(
        f" {label}",
        ProgressBar(total=1.0, completed=fraction, width=18, complete_style="cyan", finished_style="cyan"),
        f"{figures.share(fraction):>5}",
        f"  {rest}",
    )
    return grid


def stderr_display(as_json: bool) -> Display:
    """The display on this process's stderr."""
    return display_for(sys.stderr, as_json)
