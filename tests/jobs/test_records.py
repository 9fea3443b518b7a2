import json

from penstock.jobs.identity import as_duplicate
from penstock.jobs.lines import Line
from penstock.jobs.records import answer_record, encode, error_record, fault_record
from penstock.jobs.request import Parsed, parse
from penstock.outputs import CompletionOutput, RequestOutput

ID = "batch_req_0123456789abcdef01234567"
OUTPUT = RequestOutput("0", None, [1, 2, 3], [CompletionOutput(0, "line\nend é\u2028", [4, 5], "stop")])


def line(number: int, **fields: object) -> Parsed:
    return parse(Line(number, json.dumps(fields).encode()))


def test_a_chat_is_answered_as_openai_does() -> None:
    parsed = line(4, messages=[{"role": "user", "content": "hi"}], custom_id="mine")
    encoded = encode(answer_record(parsed, ID, OUTPUT, "a/model", 1700000000))
    assert encoded.count(b"\n") == 1
    assert encoded.endswith(b"\n")
    assert "é".encode() in encoded
    assert json.loads(encoded) == {
        "id": ID,
        "custom_id": "mine",
        "line": 4,
        "response": {
            "status_code": 200,
            "request_id": "req_0123456789abcdef01234567",
            "body": {
                "id": "chatcmpl-0123456789abcdef01234567",
                "object": "chat.completion",
                "created": 1700000000,
                "model": "a/model",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "line\nend é\u2028"},
                        "logprobs": None,
                        "finish_reason": "stop",
                    }
                ],
                "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
            },
        },
        "error": None,
    }


def test_other_prompts_are_answered_as_completions() -> None:
    for prompt in ({"prompt": "a"}, {"prompt_token_ids": [1]}):
        record = answer_record(line(4, **prompt), ID, OUTPUT, "m", 0)
        assert (record["custom_id"], record["line"], record["implicit_id"]) == ("line-4", 4, True)
        body = record["response"]["body"]
        assert (body["object"], body["id"][:5]) == ("text_completion", "cmpl-")
        assert body["choices"][0]["text"] == "line\nend é\u2028"
        assert "message" not in body["choices"][0]


def test_errors_say_code_and_message() -> None:
    record = error_record(line(4, prompt="a", custom_id="x"), ID, "too_long", "two\nlines")
    assert record == {
        "id": ID,
        "custom_id": "x",
        "line": 4,
        "response": None,
        "error": {"code": "too_long", "message": "two lines"},
    }
    assert fault_record(line(2, n=2, prompt="a"), ID)["error"]["code"] == "unsupported"
    duplicate = fault_record(as_duplicate(line(4, prompt="a", custom_id="x"), 2), ID)
    assert (duplicate["custom_id"], duplicate["error"]["code"]) == ("x", "duplicate")
    assert "line 2" in duplicate["error"]["message"]


def test_half_a_surrogate_pair_is_written_as_an_escape() -> None:
    encoded = encode({"text": "é\ud800"})
    assert json.loads(encoded.decode()) == {"text": "é\ud800"}
