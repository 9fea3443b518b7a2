import gzip
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import penstock.model
from penstock.cli import plan_lengths
from penstock.cli.plan_lengths import Prompts, prompts_of
from penstock.errors import UserError


class Words:
    """A tokenizer to which a word is a token, and a conversation has three more."""

    chat_template = "{{ messages }}"


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the model's files by a tokenizer that a test can take away; what was resolved."""
    asked: dict[str, Any] = {"tokenizer": Words()}
    source, tokenizer = ModuleType("penstock.model.source"), ModuleType("penstock.model.tokenizer")

    def resolve(model: str, **flags: Any) -> Any:
        asked.update(flags, model=model)
        return SimpleNamespace(name=model)

    def ids(text: str) -> list[int]:
        return [int.from_bytes(word.encode()[:7]) for word in text.split()]

    def chat(_: Any, messages: list[dict[str, Any]]) -> list[int]:
        return [token for message in messages for token in ids(str(message["content"]))] + [1, 2, 3]

    source.resolve = resolve  # type: ignore[attr-defined]  # modules made on the spot
    tokenizer.load = lambda found, **_: asked["tokenizer"]  # type: ignore[attr-defined]
    tokenizer.has_chat_template = lambda own: own is not None  # type: ignore[attr-defined]
    tokenizer.encode_chat = chat  # type: ignore[attr-defined]
    tokenizer.encode_prompt = lambda _, text: ids(text)  # type: ignore[attr-defined]
    for module in (source, tokenizer):
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(penstock.model, module.__name__.split(".")[-1], module, raising=False)
    return asked


def written(path: Path, *lines: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def read(source: str, notes: list[str] | None = None, model: str = "m") -> Prompts:
    return prompts_of(source, model, 128, False, (notes if notes is not None else []).append)


def measured(source: str, notes: list[str] | None = None, model: str = "m") -> list[tuple[int, int]]:
    return read(source, notes, model).lengths


def test_every_form_of_request(words: dict[str, Any], tmp_path: Path) -> None:
    chat = {"role": "user", "content": "two words"}
    source = written(
        tmp_path / "in.jsonl",
        {"prompt": "three short words"},
        {"messages": [chat], "max_tokens": 7},
        {"prompt_token_ids": [1, 2, 3, 4]},
        {"custom_id": "a", "url": "/v1/chat/completions", "body": {"messages": [chat], "max_completion_tokens": 5}},
        {"custom_id": "b", "url": "/v1/completions", "body": {"prompt": "as it is"}},
    )
    assert measured(source) == [(6, 128), (5, 7), (4, 128), (5, 5), (3, 128)]
    assert words["random_weights"] is True  # configs and tokenizers are enough


def test_gguf_files_hold_their_own_tokenizer(words: dict[str, Any], tmp_path: Path) -> None:
    measured(written(tmp_path / "in.jsonl", {"prompt": "x"}), model="there.gguf")
    assert words["random_weights"] is False


def test_text_files_and_compressed_ones(words: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("one\n\ntwo words\n")
    assert measured(str(tmp_path / "in.txt")) == [(4, 128), (5, 128)]
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "one"}\n'))
    assert measured(str(tmp_path / "in.jsonl.gz")) == [(4, 128)]


def test_lines_that_cannot_run_are_left_out_and_told(words: dict[str, Any], tmp_path: Path) -> None:
    notes: list[str] = []
    source = written(tmp_path / "in.jsonl", {"prompt": "one"}, {"prompt": 5}, {"tools": []})
    assert measured(source, notes) == [(4, 128)]
    assert notes == [f"2 lines of {source} cannot be run and are left out (line 2: prompt is a number, not a text)"]


def test_without_a_tokenizer_bytes_count(words: dict[str, Any], tmp_path: Path) -> None:
    words["tokenizer"] = None
    notes: list[str] = []
    assert measured(written(tmp_path / "in.jsonl", {"prompt": "x" * 400}), notes) == [(100, 128)]
    assert notes == ["m has no tokenizer beside it: prompts are taken to have 4 bytes a token"]


def test_after_many_prompts_bytes_tell_the_rest(
    words: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_lengths, "ENCODED", 2)
    notes: list[str] = []
    source = written(tmp_path / "in.jsonl", {"prompt": "ab cd ef"}, {"prompt": "ab cd ef"}, {"prompt": "x" * 16})
    assert measured(source, notes) == [(6, 128), (6, 128), (12, 128)]  # 8 bytes were 6 tokens
    assert notes == ["tokens of 2 prompts are counted, those of 1 estimated from their bytes"]


def test_files_without_a_job(words: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="is empty: put one prompt on each line"):
        measured(str(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError, match=r"has no line that can be run \(line 1: the line is not JSON"):
        (tmp_path / "bad.jsonl").write_text("hello\n")
        measured(str(tmp_path / "bad.jsonl"))
    with pytest.raises(UserError, match="is a directory"):
        measured(str(tmp_path))


HEADER = " ".join(f"word{i}" for i in range(40))


def test_prompts_that_begin_alike_come_with_their_tokens(
    words: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path / "in.jsonl", *({"prompt": f"{HEADER} and number {i}"} for i in range(6)))
    found = read(source)
    assert found.ids is not None
    assert [len(ids) for ids in found.ids] == [tokens for tokens, _ in found.lengths] == [46] * 6
    assert len({tuple(ids[:42]) for ids in found.ids}) == 1 and len({tuple(ids) for ids in found.ids}) == 6

    monkeypatch.setattr(plan_lengths, "ENCODED", 3)
    estimated = read(source)
    assert estimated.ids is not None and len(estimated.ids) == 6
    assert len({tuple(ids[:32]) for ids in estimated.ids}) == 1 and len({tuple(ids) for ids in estimated.ids}) == 6
    assert [len(ids) for ids in estimated.ids] == [tokens for tokens, _ in estimated.lengths]


def test_prompts_that_differ_come_without(words: dict[str, Any], tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", *({"prompt": f"{i} {HEADER}"} for i in range(6)))
    assert read(source).ids is None


def test_of_very_many_prompts_it_is_said_that_nothing_is_shared(
    words: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_lengths, "MOST_ALIKE", 5)
    notes: list[str] = []
    source = written(tmp_path / "in.jsonl", *({"prompt": f"{HEADER} and number {i}"} for i in range(6)))
    assert read(source, notes).ids is None
    (said,) = notes
    assert said.startswith("70% of the tokens of ") and said.endswith("because there are more than 5")
