"""One pass over the input before anything runs: what is to go, what was changed, how much it is."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from penstock.errors import UserError
from penstock.jobs.answers import Done
from penstock.jobs.errors import one_line
from penstock.jobs.identity import DUPLICATE, answer_id, as_duplicate, identity, key
from penstock.jobs.index import Index
from penstock.jobs.lines import Line, read_lines
from penstock.jobs.request import Parsed, Prompt, parse

_SUMS = ("prompt_bytes", "max_tokens", "unsaid")
_KEPT = ("lines", "strangers", "longest_prompt_bytes", "longest_max_tokens", *_SUMS)
_TOKEN_BYTES = 4  # that a token id stands for


@dataclass(slots=True)
class Survey:
    """What the input holds: lines is done + to_go + faults + duplicates.

    done: lines with an answer or error line. to_go: requests to run. faults, duplicates: lines without an error line
    yet; first_fault: what is wrong with which line; unreadable: faults that are not JSON at all. strangers: lines that
    stay in the output, of which the input has none. changed: the first identity whose request is another one than was
    answered, or None; changed_error: whether that answer is an error line. prompt_bytes, longest_prompt_bytes: of the
    prompts to go, in UTF-8, a token id counting 4. max_tokens: summed over the requests to go that say it,
    longest_max_tokens the largest, unsaid the number of those that do not. owners: first line number by key of
    custom_id. digest: of the input before it was read. is_kept: whether an earlier start made the survey.
    """

    lines: int = 0
    done: int = 0
    to_go: int = 0
    faults: int = 0
    first_fault: str = ""
    unreadable: int = 0
    duplicates: int = 0
    strangers: int = 0
    changed: str | None = None
    changed_error: bool = False
    prompt_bytes: int = 0
    longest_prompt_bytes: int = 0
    max_tokens: int = 0
    longest_max_tokens: int = 0
    unsaid: int = 0
    digest: str = ""
    is_kept: bool = False
    owners: Index = field(default_factory=Index, repr=False)

    def check_unchanged(self, out: str | os.PathLike[str]) -> None:
        """Raise UserError where a request is another one than was answered, naming it and the ways out."""
        if self.changed is None:
            return
        name, retry = Path(out).name, ", or --retry-errors" if self.changed_error else ""
        raise UserError(
            f"{one_line(self.changed, 80)} is answered in {name}, but its request or the job's settings changed since."
            f" Use another -o, or --overwrite{retry}."
        )

    def check_readable(self, source: str | os.PathLike[str]) -> None:
        """Raise UserError where no line is JSON: a text, or any other file, was taken for a job."""
        if self.lines and self.unreadable == self.lines:
            raise UserError(f"{Path(source).name}: no line of {self.lines:,} could be read; {self.first_fault}")

    def remarks(self, source: str | os.PathLike[str], out: str | os.PathLike[str]) -> Iterator[str]:
        """What a person may want to mend before a long job is under way."""
        name = Path(source).name
        if self.faults:
            yield f"{name}: {_lines(self.faults)} cannot be run, first {self.first_fault}"
        if self.duplicates:
            yield f"{name}: {_lines(self.duplicates)} with the custom_id of an earlier one, which alone is run"
        if self.strangers:
            yield f"{Path(out).name}: {_lines(self.strangers)} of which {name} has none; kept as they are"

    def parse(self, line: Line) -> Parsed:
        """What a line asks for; it is a duplicate where an earlier one owns its custom_id. Lines come in order."""
        parsed = parse(line)
        if parsed.custom_id is None or self.owners.add(digest := key(parsed), parsed.number):
            return parsed
        first = self.owners.get(digest)
        return as_duplicate(parsed, first) if first < parsed.number else parsed

    def kept(self) -> dict[str, Any]:
        """What a later start needs of this survey, if the input is the same then."""
        sums = {name: getattr(self, name) for name in _KEPT}
        return {"digest": self.digest, **sums, "of": self.to_go, "owners": len(self.owners)}

    def _look(self, line: Line, fingerprint: str, done: Done) -> None:
        self.lines += 1
        parsed = parse(line)
        digest = key(parsed)
        if parsed.custom_id is not None and not self.owners.add(digest, line.number):
            parsed = as_duplicate(parsed, self.owners.get(digest))
            digest = key(parsed)
        if digest in done:
            self.done += 1
            if self.changed is None and not done.matches(digest, answer_id(fingerprint, parsed)):
                self.changed, self.changed_error = identity(parsed), done.is_error(digest)
        elif parsed.fault is None:
            self._count(parsed)
        elif parsed.code == DUPLICATE:
            self.duplicates += 1
        else:
            self.faults += 1
            self.unreadable += parsed.code == "invalid_json"
            self.first_fault = self.first_fault or f"line {line.number:,}: {parsed.fault}"

    def _count(self, parsed: Parsed) -> None:
        self.to_go += 1
        nbytes, tokens = prompt_bytes(parsed.prompt), parsed.params.max_tokens
        self.prompt_bytes += nbytes
        self.longest_prompt_bytes = max(self.longest_prompt_bytes, nbytes)
        self.unsaid += tokens is None
        self.max_tokens += tokens or 0
        self.longest_max_tokens = max(self.longest_max_tokens, tokens or 0)


def survey(path: str | os.PathLike[str], fingerprint: str, done: Done) -> Survey:
    """Read the input once, against what is done; memory is the index of custom_ids. UserError as of ``read_lines``."""
    found = Survey(digest=_digest(path))  # first, so that what is appended meanwhile is seen by the next start
    for line in read_lines(path):
        found._look(line, fingerprint, done)
    found.strangers = _kept_lines(done) - found.done
    return found


def resumed(path: str | os.PathLike[str], kept: object, done: Done) -> Survey | None:
    """The survey of an input that is what it was when ``kept`` was made; None where it is not.

    Its bytes are hashed, not read as lines. What is to go is taken to be like the rest: sums are in proportion, and
    lines with a fault count as requests until they are reached.
    """
    if not isinstance(kept, dict) or kept.get("digest") != _digest(path):
        return None
    if not all(isinstance(kept.get(name), int) for name in (*_KEPT, "of", "owners")):
        return None
    if done.retries and kept["strangers"]:  # those with errors go now, and it is not known how many that are
        return None
    owners = Index(kept["owners"])  # filled as lines are read; its memory is taken now, before any is planned with
    found = Survey(**{name: kept[name] for name in _KEPT}, digest=str(kept["digest"]), is_kept=True, owners=owners)
    found.done = max(0, _kept_lines(done) - found.strangers)
    found.to_go = max(0, found.lines - found.done)
    for name in _SUMS:
        setattr(found, name, round(getattr(found, name) * found.to_go / max(1, kept["of"])))
    return found


def _kept_lines(done: Done) -> int:
    """Lines of the output that stay in it."""
    return done.answered + (0 if done.retries else done.errors)


def _lines(count: int) -> str:
    return f"{count:,} line{'s' * (count != 1)}"


def _digest(path: str | os.PathLike[str]) -> str:
    """Of the file's bytes; empty where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError:
        return ""


def lines_to_go(path: str | os.PathLike[str], surveyed: Survey, done: Done) -> Iterator[Parsed]:
    """The lines without an answer, in order, as they are read; those with a fault need their error line only."""
    for line in islice(read_lines(path), surveyed.lines):  # what is appended meanwhile is for the next start
        parsed = surveyed.parse(line)
        if key(parsed) not in done:
            yield parsed


def prompt_bytes(prompt: Prompt) -> int:
    """About how long a prompt is: its texts in UTF-8, a token id counting 4."""
    if "prompt" in prompt:
        return len(prompt["prompt"].encode())
    if "messages" in prompt:
        return sum(_content_bytes(message["content"]) for message in prompt["messages"])
    return _TOKEN_BYTES * len(prompt.get("prompt_token_ids", ()))


def _content_bytes(content: object) -> int:
    if isinstance(content, str):
        return len(content.encode())
    return sum(len(part["text"].encode()) for part in content) if isinstance(content, list) else 0
