import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.jobs.errors import one_line
from penstock.jobs.lines import Line
from penstock.jobs.request import Parsed, parse
from penstock.sampling import SamplingParams

MESSAGES = [{"role": "user", "content": "hello"}]


def parsed(value: Any) -> Parsed:
    return parse(Line(7, value if isinstance(value, bytes) else json.dumps(value).encode()))


def openai(body: Any, chat: bool = True, **others: Any) -> dict[str, Any]:
    url = "/v1/chat/completions" if chat else "/v1/completions"
    return {"custom_id": "a", "method": "POST", "url": url, "body": body, **others}


def chat(**fields: Any) -> dict[str, Any]:
    return openai({"messages": MESSAGES, **fields})


def test_the_three_plain_forms() -> None:
    for prompt in ({"prompt": "a"}, {"messages": MESSAGES}, {"prompt_token_ids": [0, 5]}):
        found = parsed({**prompt, "temperature": 1, "stop": "x", "custom_id": "é"})
        assert (found.number, found.custom_id, found.kind, found.fault) == (7, "é", "plain", None)
        assert found.prompt == prompt
        assert found.params == SamplingParams(temperature=1, stop="x")


def test_openai_lines() -> None:
    found = parsed(chat(model="m", max_completion_tokens=5, seed=None, n=1, stream=False, top_k=3))
    assert (found.kind, found.prompt, found.fault) == ("chat", {"messages": MESSAGES}, None)
    assert found.params == SamplingParams(max_tokens=5, top_k=3)
    found = parsed(openai({"prompt": "a"}, chat=False))
    assert (found.kind, found.prompt) == ("completion", {"prompt": "a"})
    found = parsed(openai({"prompt": [1, 2]}, chat=False, url="https://api.openai.com/v1/completions"))
    assert (found.kind, found.prompt, found.fault) == ("completion", {"prompt_token_ids": [1, 2]}, None)


@pytest.mark.parametrize(
    "body",
    [
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "logprobs": False, "top_logprobs": 0},
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "response_format": {"type": "text"}},
        {"tools": None, "tool_choice": None, "stream_options": None, "functions": None, "n": None, "never_heard": None},
        {"user": "u", "metadata": {"any": [1e300]}, "store": True, "service_tier": "flex", "echo": False, "suffix": ""},
    ],
)
def test_what_changes_nothing_is_accepted(body: dict[str, Any]) -> None:
    assert parsed(chat(**body)) == parsed(chat())


def test_one_request_has_one_spelling() -> None:
    for one, other in [
        ({"temperature": 0}, {"temperature": 0.0, "user": "u"}),
        ({"stop": "x", "top_p": 1}, {"top_p": 1.0, "stop": ["x"]}),
        ({"max_tokens": 5}, {"max_completion_tokens": 5}),
    ]:
        assert parsed(chat(**one)).canonical == parsed(chat(**other)).canonical
    kinds = [parsed({"prompt": "a"}), parsed(openai({"prompt": "a"}, chat=False)), parsed({"prompt": "b"})]
    settings_ = [parsed({"prompt": "a", name: 1}) for name in ("temperature", "top_k", "max_tokens", "seed", "top_p")]
    assert len({each.canonical for each in kinds + settings_}) == 8


DEEP = "[" * 500 + "]" * 500


@pytest.mark.parametrize(
    ("line", "code", "reason"),
    [
        (b"{", "invalid_json", "not JSON (Expecting property name"),
        (b"[1]", "invalid_json", "is a list, not an object"),
        (b"\0", "invalid_json", "not JSON"),
        ('{"prompt": "a"}'.encode("utf-16"), "invalid_json", "not UTF-8 (byte 0xff at 0)"),
        (b'{"prompt": "a\xff"}', "invalid_json", "not UTF-8 (byte 0xff at 13)"),
        (b'{"prompt": "a\0b"}', "invalid_json", "Invalid control character"),
        (b'{"prompt": ' + b"[" * 100_000, "invalid_json", "nested too deep"),
        (b'{"prompt": "a", "temperature": NaN}', "invalid_json", "NaN is not a number"),
        (b'{"prompt": "a", "temperature": 1e400}', "invalid_json", "1e400 is beyond"),
        (b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}", "invalid_json", "several thousand digits"),
        (b'{"prompt": "a", "temperature": 1' + b"0" * 4000 + b"}", "invalid_request", "beyond 64 bits"),
        (b'{"prompt": "a", "stop": ' + DEEP.encode() + b"}", "invalid_request", "stop is a list of others than texts"),
        (b'{"prompt": "a", "top_p": ' + DEEP.encode() + b"}", "invalid_request", "top_p is a list"),
        ({"messages": [{**MESSAGES[0], "x": json.loads(DEEP)}]}, "invalid_request", "nested deeper than 32 levels"),
        ({}, "invalid_request", "has none of prompt, messages, prompt_token_ids: a line is"),
        ({"prompt": "a", "messages": []}, "invalid_request", "has prompt and messages: leave all but one"),
        ({"prompt": 5}, "invalid_request", "prompt is a number"),
        ({"prompt": " "}, "invalid_request", "prompt is empty"),
        ({"prompt": "a\0b"}, "invalid_request", "prompt holds a NUL"),
        ({"prompt": "a", "stop": ["\0"]}, "invalid_request", "stop holds a NUL"),
        ({"prompt": "\ud800"}, "invalid_request", "half of a surrogate pair"),
        ({"prompt": "a", "stop": "\udfff"}, "invalid_request", "half of a surrogate pair"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "invalid_request", "half of a surrogate pair"),
        ({"prompt": "a", "custom_id": 5}, "invalid_request", "custom_id is a number"),
        ({"prompt": "a", "custom_id": None}, "invalid_request", "custom_id is null"),
        ({"prompt": "a", "custom_id": ""}, "invalid_request", "custom_id is an empty text"),
        ({"prompt": "a", "custom_id": "\ud800"}, "invalid_request", "custom_id is not valid Unicode"),
        ({"prompt": "a", "label": 1}, "unsupported", "label is not a field that is known"),
        ({"prompt": "a", "max_tokens": 0}, "invalid_request", "max_tokens is 0: give"),
        ({"prompt": "a", "max_tokens": 2**31}, "invalid_request", "max_tokens is 2,147,483,648"),
        ({"prompt": "a", "temperature": True}, "invalid_request", "temperature is True"),
        ({"prompt": "a", "stop_token_ids": 5}, "invalid_request", "stop_token_ids is a number"),
        ({"prompt_token_ids": [1, -1]}, "invalid_request", "entry 1 is no token id"),
        ({"prompt_token_ids": [1, True]}, "invalid_request", "entry 1 is no token id"),
        ({"prompt_token_ids": []}, "invalid_request", "prompt_token_ids is empty"),
        ({"messages": []}, "invalid_request", "messages is an empty list"),
        ({"messages": [{"content": "a"}]}, "invalid_request", "message 1 needs a role"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_request", "content is a number"),
        (
            {"messages": [*MESSAGES, {"role": "user", "content": [{"type": "image_url"}]}]},
            "unsupported",
            'message 2 has a part of type "image_url"',
        ),
        (openai({"messages": MESSAGES}, method="GET"), "unsupported", 'method is "GET"'),
        (openai({"input": "a"}, url="/v1/embeddings"), "unsupported", 'url is "/v1/embeddings"'),
        (openai({"messages": MESSAGES}, url=None), "unsupported", "url is null"),
        (openai("x"), "invalid_request", "body is a text"),
        (openai({"messages": MESSAGES}, max_tokens=5), "invalid_request", '"max_tokens" stands beside body'),
        (openai({"prompt": ["a", "b"]}, chat=False), "unsupported", "prompt is a list of prompts"),
        (openai({"prompt": [[1], [2]]}, chat=False), "unsupported", "prompt is a list of prompts"),
        (openai({"messages": MESSAGES}, chat=False), "invalid_request", "prompt is null"),
        (chat(tools=[{"type": "function"}]), "unsupported", "tools is not supported: leave it out"),
        (chat(n=2), "unsupported", "n is not supported except as 1"),
        (chat(n=True), "unsupported", "n is not supported"),
        (chat(logprobs=True), "unsupported", "logprobs is not supported except as false"),
        (chat(max_tokens=5, max_completion_tokens=5), "invalid_request", "are both given"),
    ],
)
def test_what_cannot_be_run_is_a_fault(line: Any, code: str, reason: str) -> None:
    found = parsed(line)
    assert found.code == code
    assert found.fault is not None
    assert reason in found.fault
    assert found.prompt == {}


@pytest.mark.parametrize("line", [b"What is the capital of France?", b'"a"', b'{"text": "a"}', b'{"prompt"', b"{"])
def test_a_line_of_another_format_is_told_what_lines_look_like(line: bytes) -> None:
    said = 'a line is {"prompt": "…"}, {"messages": […]} or OpenAI\'s {"custom_id", "method", "url", "body"}'
    fault = parsed(line).fault
    assert fault is not None and fault.endswith(said)


@pytest.mark.parametrize(
    "rest",
    [b'"prompt": NaN', b'"prompt": 1e999', b'"prompt": "\xff"', b'"prompt": "\0"', b'"x": ' + b"9" * 9999, b'"n": 2'],
)
def test_a_fault_keeps_a_custom_id_that_can_be_read(rest: bytes) -> None:
    found = parsed(b'{"custom_id": "mine", ' + rest + b"}")
    assert found.fault is not None
    assert found.custom_id == "mine"


def test_a_line_too_long_to_be_read() -> None:
    found = parse(Line(3, fault="too long"))
    assert (found.number, found.custom_id, found.fault) == (3, None, "too long")
    assert found.canonical


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
FIELDS = ["custom_id", "prompt", "messages", "prompt_token_ids", "body", "url", "method", "n", "tools", "stop", "seed"]
FIELDS += ["temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "stop_token_ids", "ignore_eos"]
WHOLE = [{"prompt": "hé", "custom_id": "a"}, chat(stop=["x"]), openai({"prompt": [1]}, False), {"messages": MESSAGES}]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good line with fields of any value, at the top or in the body, and then with its bytes cut or changed."""
    record = json.loads(json.dumps(draw(st.sampled_from(WHOLE))))
    wrong = draw(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
    body = record.get("body")
    (body if isinstance(body, dict) and draw(st.booleans()) else record).update(wrong)
    text = json.dumps(record, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    harm = draw(st.sampled_from(["none", "torn", "bytes", "number", "deep", "giant"]))
    place = draw(st.integers(0, len(text)))
    if harm == "torn":
        return text[:place]
    if harm == "bytes":
        return text[:place] + draw(st.binary(max_size=4)) + text[place + 1 :]
    huge = draw(st.sampled_from([b"1e999", b"-Infinity", b"9" * 400, b"9" * 5000, b"1e-999"]))
    filler = {"number": huge, "deep": b"[" * draw(st.integers(1, 20_000)), "giant": b'"' + b"a" * 200_000 + b'"'}
    return text.replace(b"1", filler[harm], 1) if harm in filler else text


@settings(max_examples=1000, deadline=None)
@given(damaged())
def test_no_line_whatever_raises(data: bytes) -> None:
    found = parse(Line(1, data))
    assert found.canonical or not data
    assert (found.fault is None) == (found.code is None) == bool(found.prompt)
    if found.fault is None:
        json.dumps({**found.prompt}, ensure_ascii=False).encode()
        assert found.params.temperature is None or math.isfinite(found.params.temperature)
    else:
        assert 0 < len(found.fault) <= 200
        assert found.fault.isprintable()
        found.fault.encode()
    if found.custom_id is not None:
        assert found.custom_id.encode()


@given(st.text(st.characters(codec=None)), st.integers(1, 30))
def test_one_line_is_short_and_printable(text: str, most: int) -> None:
    line = one_line(text, most)
    assert len(line) <= most
    assert line.isprintable()
    assert text != " ".join(text.split()) or not text.isprintable() or len(text) > most or line == text
