"""``penstock eval``: arguments, the table, and mistakes; scores themselves are tested where they are made."""

import json
from typing import Any

import pytest

import penstock.scoring
from penstock.cli import main

ROWS = [
    {"name": "bfloat16", "bytes": 2**28, "perplexity": 12.3456, "ratio": 1.0, "agreement": 1.0, "seconds": 9.0},
    {
        "name": "bfloat16+int4g64",
        "bytes": 2**26,
        "perplexity": 14.0,
        "ratio": 1.134,
        "agreement": 0.875,
        "seconds": 8.0,
    },
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    def compare(model: str, text: str, tokens: int, window: int, **how: Any) -> list[dict[str, Any]]:
        asked.update(how, model=model, text=text, tokens=tokens, window=window)
        return ROWS

    monkeypatch.setattr(penstock.scoring, "compare", compare)
    return asked


def test_the_table(asked, capsys):
    assert main(["eval", "demo", "--weight-bits", "4", "--plain", "--tokens", "1024"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "the reference that Python ships with: 1,024 tokens in windows of 512"
    assert said[2].split() == ["bfloat16", "256", "MiB", "12.346"]
    assert said[3].split() == ["bfloat16+int4g64", "64", "MiB", "14.000", "1.1340x", "87.5%"]
    assert asked["weight_bits"] == 4 and asked["plain"]
    assert asked["lm_head_bits"] is None and asked["kv_bits"] is None
    assert "assert" in asked["text"] and len(asked["text"]) > 100_000


def test_a_text_of_ones_own_as_json(asked, capsys, tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("Call me Ishmael.")
    assert main(["eval", "demo", "-i", str(path), "--kv-bits", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == ROWS
    assert asked["text"] == "Call me Ishmael." and asked["kv_bits"] == 8


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-i", "nowhere.txt"], "-i nowhere.txt cannot be read: No such file"),
        (["--tokens", "100"], "--window 512 is more than the --tokens 100"),
    ],
)
def test_mistakes(asked, capsys, flags, said):
    assert main(["eval", "demo", *flags]) == 2
    assert said in capsys.readouterr().err


def test_a_file_that_is_no_text(asked, capsys, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(b"ab\xff")
    assert main(["eval", "demo", "-i", str(path)]) == 2
    assert "is not text in UTF-8 (byte 2)" in capsys.readouterr().err
