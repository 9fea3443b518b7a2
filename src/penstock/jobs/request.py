"""What one line of the input asks for, or why it cannot be run."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from penstock.jobs.errors import Fault
from penstock.jobs.fields import check_token_ids, kind_of, read_sampling
from penstock.jobs.lines import Line
from penstock.sampling import SamplingParams

Kind = Literal["chat", "completion", "plain"]
Prompt = Mapping[str, Any]

FORMS = ("prompt", "messages", "prompt_token_ids")
_OPENAI = frozenset({"custom_id", "method", "url", "body"})
_ENDPOINT = re.compile(r"(?:https?://[^/\s]+)?/v1/(chat/)?completions/?")
_FORM = 'a line is {"prompt": "…"}, {"messages": […]} or OpenAI\'s {"custom_id", "method", "url", "body"}'
_DEEPEST = 32  # levels of messages: templates recurse into them


@dataclass(frozen=True, slots=True)
class Parsed:
    """A line of the input.

    number: of the line, from 1. custom_id: as given, or None. kind: ``chat`` and ``completion`` are OpenAI's endpoints.
    prompt: one of prompt, messages, prompt_token_ids; empty for a fault. params: only what the line says. canonical:
    everything that changes the answer in one spelling, to be hashed; of a fault, the line itself. fault: why it cannot
    be run, in one line, and code: the kind of fault; both or neither are None.
    """

    number: int
    custom_id: str | None
    kind: Kind
    prompt: Prompt
    params: SamplingParams
    canonical: bytes
    fault: str | None = None
    code: str | None = None


def parse(line: Line) -> Parsed:
    """What a line asks for; whatever its bytes are, nothing is raised: what cannot be run has a ``fault``."""
    try:
        if line.fault is not None:
            raise Fault("invalid_request", line.fault)
        return _request(line.number, _object(line.data))
    except Fault as fault:
        canonical = line.data or fault.reason.encode()
        custom_id = _readable_id(line.data)
        return Parsed(line.number, custom_id, "plain", {}, SamplingParams(), canonical, fault.reason, fault.code)


def _request(number: int, record: dict[str, Any]) -> Parsed:
    if "custom_id" in record and not _usable_id(record["custom_id"]):
        given = record["custom_id"]
        what = "not valid Unicode" if isinstance(given, str) and given else kind_of(given)
        raise Fault("invalid_request", f"custom_id is {what}: give a text that is not empty, or leave it out")
    kind, body = _openai(record) if "body" in record or "url" in record or "method" in record else _plain(record)
    field, prompt = _prompt(kind, body)
    params, said = read_sampling(body, field)
    canonical = _canonical({"kind": kind, **prompt, **said})
    return Parsed(number, record.get("custom_id"), kind, prompt, params, canonical)


def _openai(record: dict[str, Any]) -> tuple[Kind, dict[str, Any]]:
    extra = next((name for name in record if name not in _OPENAI), None)
    if extra is not None:
        raise Fault("invalid_request", f"{json.dumps(extra[:60])} stands beside body: put it inside, or in metadata")
    method, url, body = record.get("method", "POST"), record.get("url"), record.get("body")
    if method != "POST":
        raise Fault("unsupported", f"method is {_told(method)}: only POST is supported")
    endpoint = _ENDPOINT.fullmatch(url) if isinstance(url, str) else None
    if endpoint is None:
        raise Fault("unsupported", f"url is {_told(url)}: only /v1/chat/completions and /v1/completions are supported")
    if not isinstance(body, dict):
        raise Fault("invalid_request", f"body is {kind_of(body)}, not an object")
    return ("chat" if endpoint[1] else "completion"), body


def _plain(record: dict[str, Any]) -> tuple[Kind, dict[str, Any]]:
    given = [form for form in FORMS if record.get(form) is not None]
    if len(given) != 1:
        if not given:
            raise Fault("invalid_request", f"the line has none of {', '.join(FORMS)}: {_FORM}")
        raise Fault("invalid_request", f"the line has {' and '.join(given)}: leave all but one of them out")
    return "plain", {name: value for name, value in record.items() if name != "custom_id"}


def _prompt(kind: Kind, body: dict[str, Any]) -> tuple[str, Prompt]:
    """The field of the body that holds the prompt, and the prompt."""
    field = {"chat": "messages", "completion": "prompt"}.get(kind) or next(
        form for form in FORMS if body.get(form) is not None
    )
    value = body.get(field)
    if field == "messages":
        _check_messages(value)
    elif field == "prompt_token_ids" or (kind == "completion" and isinstance(value, list)):
        _check_token_ids(value, field)
        return field, {"prompt_token_ids": value}
    else:
        _check_text(value)
    return field, {field: value}


def _check_text(value: Any) -> None:
    if not isinstance(value, str):
        raise Fault("invalid_request", f"prompt is {kind_of(value)}, not a text")
    if not value.strip():
        raise Fault("invalid_request", "prompt is empty: give it at least one word")


def _check_token_ids(value: Any, field: str) -> None:
    if isinstance(value, list) and value and field == "prompt" and isinstance(value[0], str | list):
        raise Fault("unsupported", "prompt is a list of prompts: give each a line of its own")
    check_token_ids(field, value)
    if not value:
        raise Fault("invalid_request", f"{field} is empty: give it at least one token id")


def _check_messages(value: Any) -> None:
    if not isinstance(value, list) or not value:
        raise Fault("invalid_request", f'messages is {kind_of(value)}, not a list of {{"role", "content"}} objects')
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise Fault("invalid_request", f"message {number} needs a role (a text) and a content")
        _check_content(message["content"], number)


def _check_content(content: Any, number: int) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise Fault(
            "invalid_request", f"message {number}: content is {kind_of(content)}, not a text or a list of parts"
        )
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = _told(part.get("type")) if isinstance(part, dict) else kind_of(part)
            raise Fault("unsupported", f"message {number} has a part of type {kind}: only text is taken")
        if not isinstance(part.get("text"), str):
            raise Fault("invalid_request", f"message {number}: the text of a part is {kind_of(part.get('text'))}")


def _check_texts(value: Any, what: str) -> None:
    """Refuse NUL characters, which some tokenizers take for the end, and values nested too deep for templates."""
    waiting = [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        if isinstance(one, str):
            if "\0" in one:
                raise Fault("invalid_request", f"{what} holds a NUL character: take it out")
        elif isinstance(one, dict | list):
            if depth == _DEEPEST:
                raise Fault("invalid_request", f"{what} is nested deeper than {_DEEPEST} levels")
            waiting.extend((inner, depth + 1) for inner in (one.values() if isinstance(one, dict) else one))


def _canonical(asked: dict[str, Any]) -> bytes:
    try:
        canonical = _ENCODER.encode(asked).encode()
    except UnicodeEncodeError:
        raise Fault("invalid_request", "a text is not valid Unicode: it holds half of a surrogate pair") from None
    except RecursionError:
        raise Fault("invalid_request", "the request is nested too deep") from None
    # a NUL or deep nesting shows in the bytes, and few lines need the walk that tells them from mere text
    if b"\\u0000" in canonical or canonical.count(b"[") + canonical.count(b"{") > _DEEPEST:
        for name, value in asked.items():
            _check_texts(value, name)
    return canonical


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = _STRICT.decode(data.decode())
    except UnicodeDecodeError as error:
        byte = f"byte 0x{data[error.start]:02x} at {error.start}"
        raise Fault("invalid_json", f"the line is not UTF-8 ({byte}): convert it first") from None
    except json.JSONDecodeError as error:
        raise Fault("invalid_json", f"the line is not JSON ({error.msg}, character {error.pos + 1}): {_FORM}") from None
    except RecursionError:
        raise Fault("invalid_json", "the line is nested too deep to be read") from None
    except ValueError:  # Python's limit on the digits of a whole number
        raise Fault("invalid_json", "the line holds a number of several thousand digits") from None
    if not isinstance(value, dict):
        raise Fault("invalid_json", f"the line is {kind_of(value)}, not an object: {_FORM}")
    return value


def _readable_id(data: bytes) -> str | None:
    """The custom_id of a line that cannot be run, wherever it can be made out at all."""
    try:
        value = _LENIENT.decode(data.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return None
    custom_id = value.get("custom_id") if isinstance(value, dict) else None
    return custom_id if _usable_id(custom_id) else None


def _usable_id(given: Any) -> bool:
    return isinstance(given, str) and bool(given) and not _SURROGATE.search(given)


def _told(value: Any) -> str:
    """A value in a message."""
    return json.dumps(value[:60]) if isinstance(value, str) else kind_of(value)


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise Fault("invalid_json", f"{digits[:30]} is beyond the range of numbers")
    return value


def _no_constant(name: str) -> NoReturn:
    raise Fault("invalid_json", f"the line is not JSON: {name} is not a number there")


_SURROGATE = re.compile("[\ud800-\udfff]")
_STRICT = json.JSONDecoder(parse_float=_finite, parse_constant=_no_constant)
_LENIENT = json.JSONDecoder(
    parse_float=lambda _: 0.0, parse_int=lambda _: 0, parse_constant=lambda _: None, strict=False
)
_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False)
