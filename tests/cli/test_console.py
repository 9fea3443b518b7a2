import io
import json
from typing import Any

from penstock.cli.console import JsonDisplay, LineDisplay, LiveDisplay, Streamed, display_for


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


SWEEP: dict[str, Any] = {
    "kind": "sweep",
    "sweeps": 318,
    "prompts_done": 412,
    "prompts": 2000,
    "tokens_out": 21,
    "tokens_left": 79,
    "seconds": 60.0,
    "tok_s": 13.6,
    "planned_tok_s": 14.0,
    "rows": 196,
    "memory": {"gpu": [10.7 * 2**30, 12 * 2**30], "cpu": [22.1 * 2**30, 24 * 2**30], "disk": [0, 2**40]},
    "waiting": {"disk→cpu": 0.88, "cpu→gpu": 0.1},
    "eta_s": 17460.0,
}
LOAD = {"kind": "load", "what": "converting to pages", "done": 2**20, "total": 4 * 2**20}
MEASURING = {"kind": "load", "what": "measuring disks", "done": 6.2, "total": 15.0, "unit": "s"}


def test_the_display_suits_the_stream() -> None:
    assert isinstance(display_for(io.StringIO(), as_json=False), LineDisplay)
    assert isinstance(display_for(Terminal(), as_json=False), LiveDisplay)
    assert isinstance(display_for(Terminal(), as_json=True), JsonDisplay)


def test_lines_come_every_ten_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    display = LineDisplay(stream, clock)
    for clock.now in (100.0, 101.0, 111.0, 112.0, 122.0):
        display.show(SWEEP)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0] == (
        "412 of 2,000 prompts · 13.6 tok/s (plan 14) · 4 h 51 min left · 196 rows · sweep 318"
        " · waiting for disk→cpu 88 %"
        " · gpu 10.7/12 GiB · cpu 22.1/24 GiB"
    )


def test_a_new_subject_is_said_at_once() -> None:
    stream, clock = io.StringIO(), Clock()
    display = LineDisplay(stream, clock)
    display.show(LOAD)
    display.show(LOAD)
    display.show({**LOAD, "what": "reading resident pages"})
    display.show({"kind": "note", "text": "computing in float32"})
    display.show({"kind": "of a later version"})
    assert stream.getvalue().splitlines() == [
        "converting to pages: 1/4 MiB (25 %)",
        "reading resident pages: 1/4 MiB (25 %)",
        "computing in float32",
    ]


def test_what_is_measured_is_shown_in_seconds() -> None:
    lines, live = io.StringIO(), Terminal()
    LineDisplay(lines, Clock()).show(MEASURING)
    assert lines.getvalue() == "measuring disks: 6/15 s (41 %)\n"
    display = LiveDisplay(live)
    display.show(MEASURING)
    display.close()
    assert "measuring disks" in live.getvalue() and "6/15 s" in live.getvalue()


def test_json_lines_are_the_events_at_most_once_a_second() -> None:
    stream, clock = io.StringIO(), Clock()
    display = JsonDisplay(stream, clock)
    display.show(LOAD)
    for clock.now in (100.0, 100.5, 101.5):
        display.show(SWEEP)
    assert [json.loads(line)["kind"] for line in stream.getvalue().splitlines()] == ["load", "sweep", "sweep"]


def test_the_live_display_says_the_same_and_leaves_nothing() -> None:
    stream = Terminal()
    display = LiveDisplay(stream)
    display.show({"kind": "note", "text": "[brackets] stay"})
    display.show(SWEEP)
    drawn = stream.getvalue()
    for part in ("[brackets] stay", "412 / 2,000", "21 %", "13.6 tok/s", "4 h 51 min left", "196 rows", "sweep 318"):
        assert part in drawn
    display.close()
    display.close()
    closed = stream.getvalue()
    display.show(SWEEP)
    assert stream.getvalue() == closed
    display.show({"kind": "note", "text": "--trace was not written"})
    assert stream.getvalue().endswith("--trace was not written\x1b[0m\n")
    assert "\x1b[2K" in closed[len(drawn) :], "the lines are erased"


def test_streamed_text_takes_the_terminal_over() -> None:
    out, err = Terminal(), Terminal()
    display = LiveDisplay(err)
    display.show(SWEEP)
    streamed = Streamed(out, display)
    streamed.write("")
    streamed.write("Par")
    assert out.getvalue() == "Par"
    assert streamed.is_open
    before = err.getvalue()
    display.show({**LOAD, "what": "late"})
    assert err.getvalue() == before
    streamed.finish("Paris.")
    assert out.getvalue() == "Paris.\n"
    assert not streamed.is_open


def test_streamed_text_that_was_cut_is_not_said_again() -> None:
    out = io.StringIO()
    streamed = Streamed(out, LineDisplay(io.StringIO()))
    streamed.write("Paris. STOP")
    streamed.finish("Paris.")
    assert out.getvalue() == "Paris. STOP\n"
