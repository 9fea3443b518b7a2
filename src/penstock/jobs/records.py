"""Lines of the output, in the form of OpenAI's batch answers.

Beside OpenAI's fields each has ``line``, the number of its line in the input. Where the input names no custom_id, the
custom_id is ``line-<number>`` and ``"implicit_id": true`` tells it from one that was given and reads the same.
"""

import json
from collections.abc import Mapping
from typing import Any

from penstock.jobs.errors import one_line
from penstock.jobs.identity import ID_PREFIX, identity
from penstock.jobs.request import Parsed
from penstock.outputs import RequestOutput

Record = dict[str, Any]


def answer_record(parsed: Parsed, id: str, output: RequestOutput, model: str, created: int) -> Record:
    """The line of an answer; requests with messages are answered as chats, others as completions.

    id: of ``answer_id``. created: seconds since 1970.
    """
    answer, serial = output.outputs[0], id.removeprefix(ID_PREFIX)
    chat = "messages" in parsed.prompt
    content: Record = {"message": {"role": "assistant", "content": answer.text}} if chat else {"text": answer.text}
    if not answer.text:  # a model without a tokenizer, or tokens that show nothing
        content["token_ids"] = list(answer.token_ids)
    prompt_tokens, completion_tokens = len(output.prompt_token_ids), len(answer.token_ids)
    body = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{serial}",
        "object": "chat.completion" if chat else "text_completion",
        "created": created,
        "model": model,
        "choices": [{"index": 0, **content, "logprobs": None, "finish_reason": answer.finish_reason}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }
    response = {"status_code": 200, "request_id": f"req_{serial}", "body": body}
    return {**_head(parsed, id), "response": response, "error": None}


def error_record(parsed: Parsed, id: str, code: str, message: str) -> Record:
    """The line of a request that cannot be answered; code is a word for programs, message a line for people."""
    return {**_head(parsed, id), "response": None, "error": {"code": code, "message": one_line(message, 500)}}


def fault_record(parsed: Parsed, id: str) -> Record:
    """The error line of a line that has a fault."""
    return error_record(parsed, id, parsed.code or "invalid_request", parsed.fault or "")


def encode(record: Mapping[str, Any]) -> bytes:
    """The record as one line of UTF-8; what UTF-8 cannot hold is written as JSON's escapes."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode() + b"\n"


def _head(parsed: Parsed, id: str) -> Record:
    implicit = {"implicit_id": True} if parsed.custom_id is None else {}
    return {"id": id, "custom_id": identity(parsed), "line": parsed.number, **implicit}
