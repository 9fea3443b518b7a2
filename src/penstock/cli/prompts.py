"""Prompts from the command line, a file or standard input."""

import json
import sys
from pathlib import Path
from typing import Any

from penstock.errors import UserError
from penstock.jobs.errors import Fault
from penstock.jobs.fields import NEUTRAL, SAMPLING, kind_of, read_sampling
from penstock.jobs.request import FORMS

Prompt = str | dict[str, Any]

_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}  # by what files of the kind begin with
_HEEDED = {*SAMPLING, *NEUTRAL, "max_completion_tokens"}  # elsewhere; other columns are nobody's concern


def read_prompts(arguments: list[str], source: str | None) -> list[Prompt]:
    """The job's prompts in order: texts, or objects with one of ``FORMS``.

    arguments: prompts given as words of the command. source: a file's name, ``-`` for standard input, or None.
    Raises UserError where both or neither are given, and names the line of a file that cannot be read.
    """
    if arguments and source is not None:
        raise UserError("prompts come either as arguments or from -i, not both; leave one of them out")
    if source is not None:
        return _read(source)
    if not arguments:
        raise UserError("no prompt: give one in quotes after MODEL, or -i FILE with one a line (- is standard input)")
    return [_text(prompt, f"prompt {number}") for number, prompt in enumerate(arguments, start=1)]


def _read(source: str) -> list[Prompt]:
    name = "standard input" if source == "-" else source
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from error
    for begin, kind in _COMPRESSED.items():
        if data.startswith(begin):
            raise UserError(f"{name} is compressed ({kind}): decompress it first, or let run-batch read it")
    lines = [(number, line) for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)]
    filled = [(f"{name}, line {number}", _decode(line, name, number)) for number, line in lines if line.strip()]
    if not filled:
        raise UserError(f"{name} holds no prompt: it is empty; put one prompt on each line")
    first = filled[0][1].lstrip()
    if Path(source).suffix == ".json" and first.startswith(("{", "[")):
        raise UserError(f"{name} is JSON: name it .jsonl, an object on each line, or .txt to take lines as they are")
    objects = first.startswith("{") if source == "-" else Path(source).suffix == ".jsonl"
    return [_parse(line, place) if objects else _text(line, place) for place, line in filled]


def _decode(line: bytes, name: str, number: int) -> str:
    try:
        return line.decode("utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{line[error.start]:02x} at {error.start}"
        raise UserError(f"{name}, line {number} is not UTF-8 ({byte}); convert it to UTF-8 first") from error


def _parse(line: str, place: str) -> Prompt:
    """One line of a .jsonl file, checked for its shape."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is no JSONDecodeError
        raise UserError(f"{place} is not JSON: {error}; each line is one object") from error
    if not isinstance(value, dict):
        raise UserError(f'{place} is {kind_of(value)}, not an object such as {{"prompt": "…"}}')
    given = [form for form in FORMS if form in value]
    if not given and "body" in value:
        raise UserError(f"{place} is in OpenAI's batch form: penstock run-batch answers such files")
    if len(given) != 1:
        raise UserError(f"{place} has {' and '.join(given) or 'none'} of {', '.join(FORMS)}; it must have exactly one")
    form = given[0]
    _check_fields(value, form, place)
    check = {"prompt": _text, "messages": _messages, "prompt_token_ids": _token_ids}[form]
    return {form: check(value[form], place)}


def _check_fields(value: dict[str, Any], form: str, place: str) -> None:
    """Refuse what stands beside a prompt and would change its answer elsewhere: nobody heeds it here."""
    try:
        _, settings = read_sampling({name: said for name, said in value.items() if name in _HEEDED}, form)
    except Fault as fault:
        raise UserError(f"{place}: {fault.reason}") from None
    if settings:
        names = ", ".join(sorted(settings))
        raise UserError(f"{place} sets {names}: settings are flags here and hold for all prompts; run-batch heeds them")


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{place}: prompt is {kind_of(value)}, not a text")
    if not value.strip():
        raise UserError(f"{place} is empty; give it at least one word")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{place} is not valid Unicode (at character {error.start}); mend or remove it") from error
    return value


def _messages(value: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise UserError(f'{place}: messages is {kind_of(value)}, not a list of {{"role", "content"}} objects')
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise UserError(f"{place}: message {number} needs a role (a text) and a content")
        if isinstance(message["content"], str) and message["content"]:
            _text(message["content"], f"{place}: message {number}")
    return value


def _token_ids(value: Any, place: str) -> list[int]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{place}: prompt_token_ids is {kind_of(value)}, not a list of token ids")
    for number, token in enumerate(value):
        if type(token) is not int or token < 0:
            raise UserError(f"{place}: token id {number} is {json.dumps(token)[:40]}, not a whole number from 0 up")
    return value
