import gzip
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.cli.prompts import read_prompts
from penstock.errors import UserError


def read(tmp_path: Path, data: bytes, name: str = "job.jsonl") -> list[object]:
    (tmp_path / name).write_bytes(data)
    return list(read_prompts([], str(tmp_path / name)))


def test_text_has_one_prompt_a_line(tmp_path: Path) -> None:
    data = "\ufefffirst\r\n\n  second \u2028 still\n{third}".encode()
    assert read(tmp_path, data, "job.txt") == ["first", "  second \u2028 still", "{third}"]


def test_jsonl_has_three_forms(tmp_path: Path) -> None:
    data = b'{"prompt": "a"}\n\n{"messages": [{"role": "user", "content": "b"}]}\n{"prompt_token_ids": [0, 5]}\n'
    assert read(tmp_path, data) == [
        {"prompt": "a"},
        {"messages": [{"role": "user", "content": "b"}]},
        {"prompt_token_ids": [0, 5]},
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "is not JSON"),
        (b"plain", "is not JSON"),
        (b"[1]", "is a list, not an object"),
        (b"{}", "has none of prompt, messages, prompt_token_ids"),
        (b'{"prompt": "a", "messages": []}', "has prompt and messages of"),
        (b'{"prompt": 5}', "prompt is a number, not a text"),
        (b'{"prompt": " "}', "is empty"),
        (b'{"prompt": "\\ud800"}', "is not valid Unicode"),
        (b'{"prompt": "a", "max_tokens": 5}', "sets max_tokens"),
        (b'{"prompt": "a", "stop_token_ids": [5]}', "sets stop_token_ids"),
        (b'{"prompt": "a", "max_completion_tokens": 5}', "sets max_tokens: settings are flags here"),
        (b'{"prompt": "a", "n": 2}', "line 3: n is not supported except as 1: leave it out"),
        (b'{"messages": [], "tools": [{}]}', "tools is not supported"),
        (b'{"custom_id": "q", "url": "/v1/completions", "body": {}}', "is in OpenAI's batch form: penstock run-batch"),
        (b'{"prompt_token_ids": [' + b"1" * 5000 + b"]}", "is not JSON"),
        (b'{"messages": []}', "messages is an empty list"),
        (b'{"messages": [{"content": "a"}]}', "message 1 needs a role"),
        (b'{"prompt_token_ids": [1, -1]}', "token id 1 is -1"),
        (b'{"prompt_token_ids": [true]}', "token id 0 is true"),
        (b'{"prompt_token_ids": [1.5]}', "token id 0 is 1.5"),
        (b'{"prompt": "\xff"}', "is not UTF-8 (byte 0xff at 12)"),
        (b'{"prompt": ' + b"[" * 100_000, "is not JSON"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: bytes, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, b'{"prompt": "fine"}\n\n' + line + b"\n")
    text = str(caught.value)
    assert "job.jsonl, line 3" in text
    assert message in text
    assert "\n" not in text


def test_what_changes_no_answer_may_stand_beside_a_prompt(tmp_path: Path) -> None:
    line = b'{"custom_id": "q1", "prompt": "a", "n": 1, "max_tokens": null, "colour": "red"}'
    assert read(tmp_path, line) == [{"prompt": "a"}]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("job.jsonl.gz", gzip.compress(b'{"prompt": "a"}', mtime=0), "is compressed (gzip): decompress it first"),
        ("job.zst", b"\x28\xb5\x2f\xfd and more", "is compressed (zstd)"),
        ("job.json", b'[{"prompt": "a"}]', "is JSON: name it .jsonl, an object on each line, or .txt"),
        ("job.json", b'\n {"prompt": "a"}\n', "is JSON: name it .jsonl"),
    ],
)
def test_files_of_other_kinds_are_not_taken_for_text(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        read(tmp_path, data, name)


def test_files_that_hold_nothing_or_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no prompt"):
        read(tmp_path, b"\n \n")
    with pytest.raises(UserError, match="No such file"):
        read_prompts([], str(tmp_path / "missing"))
    with pytest.raises(UserError, match="Is a directory"):
        read_prompts([], str(tmp_path))


def test_standard_input_is_jsonl_if_it_begins_like_it(stdin: Callable[[bytes], None]) -> None:
    stdin(b'\n  {"prompt": "a"}\n')
    assert read_prompts([], "-") == [{"prompt": "a"}]
    stdin(b"plain\n{text}")
    assert read_prompts([], "-") == ["plain", "{text}"]


def test_arguments() -> None:
    assert read_prompts(["a", "b\nc"], None) == ["a", "b\nc"]
    with pytest.raises(UserError, match="prompt 2 is empty"):
        read_prompts(["a", " "], None)
    with pytest.raises(UserError, match="no prompt"):
        read_prompts([], None)
    with pytest.raises(UserError, match="not both"):
        read_prompts(["a"], "b")
    with pytest.raises(UserError, match="not valid Unicode"):
        read_prompts(["\udcff"], None)
