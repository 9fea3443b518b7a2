"""Traces as the study writes them: a line of text for each step, layer and sublayer."""

import json
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from penstock.errors import UserError
from penstock.trace import bits
from penstock.trace.coded import CodedTrace
from penstock.trace.header import TraceHeader
from penstock.trace.skip_trace import SkipBits
from penstock.trace.writer import TraceWriter
from penstock.units import format_bytes

Progress = Callable[[int, int], None]  # bytes read, bytes in all

_LINE = re.compile(
    r'\s*(\d{1,15})\s*,\s*(\d{1,15})\s*,\s*([01])\s*,\s*"?\[([\d,\s]*)\]"?\s*,\s*(0|1|true|false)\s*',
    re.ASCII | re.IGNORECASE,
)
_HEAD = re.compile(r"n\s*,\s*l\s*,\s*s\b", re.IGNORECASE)
_FORM = "n,l,s,[ids],skip_layer such as 1024,0,0,[3,17],0"
_LONGEST_BYTES = 64 << 20  # of a line: what has no lines is not held to its end
_LONGEST_SHOWN = 40
_MOST_LAYERS = 1 << 16


@dataclass(frozen=True)
class TextLine:
    """One line: at token `step` and `layer`, what attention (or, with `mlp`, the other sublayer) skips."""

    number: int
    step: int
    layer: int
    mlp: bool
    tokens: list[int]
    whole: bool


@dataclass(frozen=True)
class Imported:
    """A trace and what of the text it cannot hold: lines by which an MLP is skipped."""

    trace: CodedTrace
    mlp_lines: int


class _Mistake(Exception):
    """What is wrong with a line."""


def import_text(
    source: Path,
    target: Path | None,
    *,
    prefill_tokens: int,
    layers: int | None = None,
    first_step: int | None = None,
    model: str = "",
    progress: Progress | None = None,
) -> Imported:
    """Read a text trace and write it as a file, or keep it in memory without ``target``.

    layers: as many as the text names unless given. first_step: what the text calls the first decode step, the one that
    writes token ``prefill_tokens``; that number unless given. docs/traces.md has the format. Raises UserError with the
    line's number.
    """
    if layers is None:
        if _is_read_once(source):
            raise UserError(f"{source} can be read only once, and its layers are counted first: give --layers")
        layers = 1 + max(line.layer for line in _lines(source, None))
    header = TraceHeader(prefill_tokens, layers, "import", model, parameters={"text": source.name})
    with TraceWriter(target, header) as writer:
        reader = _Reader(writer, prefill_tokens if first_step is None else first_step)
        for line in _lines(source, progress):
            try:
                reader.take(line)
            except _Mistake as mistake:
                raise UserError(f"{source}, line {line.number:,}: {mistake}") from None
        reader.end_step()
        return Imported(writer.close(), reader.mlp_lines)


class _Reader:
    """Gathers the lines of a step and writes them when the next one begins."""

    def __init__(self, writer: TraceWriter, first_step: int) -> None:
        self.mlp_lines = 0
        self._writer = writer
        self._first_step = first_step
        self._seen: set[tuple[int, bool]] = set()
        self._bits = self._nothing()

    def take(self, line: TextLine) -> None:
        header, step = self._writer.header, line.step - self._first_step
        if step < 0:
            raise _Mistake(
                f"step {line.step:,} comes before the first, {self._first_step:,}:"
                " --prefill-tokens says where decoding starts, --first-step what the text calls that step"
            )
        if step < self._writer.steps:
            now = self._first_step + self._writer.steps
            raise _Mistake(f"step {line.step:,} after step {now:,}: sort the lines by their first number")
        if line.layer >= header.layers:
            raise _Mistake(
                f"layer {line.layer:,} of a model of {header.layers:,}, which are 0 to {header.layers - 1:,}"
            )
        if self._seen and self._writer.steps < step:
            self.end_step()
        if self._writer.steps < step:
            missing = self._first_step + self._writer.steps
            mend = f"write {missing},0,0,[],0 if it skips nothing"
            if not self._writer.steps:
                mend += ", or say with --prefill-tokens or --first-step where decoding starts"
            raise _Mistake(f"step {line.step:,}, and no line for step {missing:,}: {mend}")
        if (line.layer, line.mlp) in self._seen:
            raise _Mistake(f"a second line for step {line.step:,}, layer {line.layer:,}, s = {int(line.mlp)}")
        self._seen.add((line.layer, line.mlp))
        existing = header.prefill_tokens + step
        if (latest := max(line.tokens, default=-1)) >= existing:
            raise _Mistake(f"token {latest:,} is skipped at a step that has tokens 0 to {existing - 1:,}")
        if line.mlp:
            self.mlp_lines += line.whole
        elif line.whole:
            self._bits[line.layer] = bits.below(existing, self._bits.shape[1])
        elif line.tokens:
            self._bits[line.layer] = bits.from_tokens(np.array(line.tokens, np.int64), self._bits.shape[1])

    def end_step(self) -> None:
        """Write what was gathered: a layer without a line skips nothing."""
        self._writer.append(self._bits)
        self._seen = set()
        self._bits = self._nothing()

    def _nothing(self) -> SkipBits:
        words = self._writer.words
        return np.zeros((self._writer.header.layers, words), np.uint64)


def _is_read_once(source: Path) -> bool:
    try:
        mode = source.stat().st_mode
    except OSError:  # told when it is read
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _lines(source: Path, progress: Progress | None) -> Iterator[TextLine]:
    """The lines that say something; UserError at the first that cannot be read, or where there is none."""
    done, found = 0, False
    try:
        total = source.stat().st_size
        with source.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_BYTES + 1), b""), 1):
                done += len(line)
                if progress is not None:
                    progress(done, max(done, total))
                try:
                    parsed = _parsed(number, line)
                except _Mistake as mistake:
                    raise UserError(f"{source}, line {number:,}: {mistake}") from None
                if parsed is not None:
                    found = True
                    yield parsed
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}): give a text trace, {_FORM}") from error
    if not found:
        raise UserError(f"{source} has no line of a trace: {_FORM}")


def _parsed(number: int, line: bytes) -> TextLine | None:
    """What a line says; None for a note, a head and nothing."""
    if len(line) > _LONGEST_BYTES:
        raise _Mistake(f"longer than {format_bytes(_LONGEST_BYTES)}, where a line is {_FORM}")
    text = line.decode("utf-8-sig" if number == 1 else "utf-8", "replace").strip()
    if not text or text.startswith("#") or (number == 1 and _HEAD.match(text)):
        return None
    match = _LINE.fullmatch(text)
    if match is None:
        shown = text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
        raise _Mistake(f"{shown!r} is not {_FORM}")
    step, layer, sublayer, tokens, whole = match.groups()
    if int(layer) >= _MOST_LAYERS:
        raise _Mistake(f"layer {int(layer):,}, where no model has {_MOST_LAYERS:,}")
    try:
        ids: list[int] = json.loads(f"[{tokens}]")
    except ValueError:  # among others, a number longer than Python converts
        raise _Mistake("its ids are no list of numbers such as [3,17]") from None
    return TextLine(number, int(step), int(layer), sublayer == "1", ids, whole.lower() in ("1", "true"))
