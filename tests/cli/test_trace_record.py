"""``penstock trace record``: what it takes as a prompt, what it prints, and mistakes in one line."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from tests.model.test_tokenizer import TEMPLATE, byte_tokenizer
from tests.parity import families
from transformers import AutoModelForCausalLM, LlamaConfig

from penstock.cli import main
from penstock.trace.coded import CodedTrace

TEXT = "Beautiful is better than ugly.\n\nExplicit is better than implicit.\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random model that reads bytes and has a chat template."""
    path = tmp_path_factory.mktemp("spoken")
    widths = {**families.GQA, "vocab_size": 260, "num_hidden_layers": 2}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(max_position_embeddings=256, **widths)).save_pretrained(path)
    byte_tokenizer(TEMPLATE).save_pretrained(path)
    return str(path)


def record(model: str, *flags: str, status: int = 0) -> None:
    common = ["--unchecked", "--dtype", "float32", "--max-tokens", "6", "--ignore-eos"]
    assert main(["trace", "record", model, *common, *flags]) == status


def test_a_text_file_is_one_prompt(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, file = tmp_path / "zen.txt", tmp_path / "zen.skip"
    text.write_text(TEXT)
    record(model, "-i", str(text), "--rule", "top-k:10%", "--recent", "8", "--output", str(file))
    lines = capsys.readouterr().out.splitlines()
    trace = CodedTrace.open(file)
    assert trace.shape.prefill_tokens == len(TEXT) + 1  # and BOS: no template is put around it
    assert trace.header.rule == "top-k:10%" and trace.header.parameters["recent"] == 8
    assert lines[0].startswith(f"{file}: 5 steps after {len(TEXT) + 1} prompt tokens, 2 layers, ")
    skipped = f"{100 * trace.realised_skip:.1f} %"
    assert lines[1] == f"skipped: {skipped} of tokens by top-k:10% (4 first and 8 latest always read)"
    assert re.fullmatch(r"attention kept: \d\d\.\d %; least at layer [01], \d\d\.\d %", lines[2])


def test_info_tells_the_attention_kept(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "zen.skip"
    record(model, "--prompt", TEXT, "--rule", "top-k:5", "--output", str(file))
    kept = capsys.readouterr().out.splitlines()[2].split()[2]
    assert main(["trace", "info", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "made by       top-k:5 · sinks 4 · recent 16 · temperature 0 · seed 0" in lines
    at = lines.index(f"attention     {kept} % is on tokens that are read")
    assert re.fullmatch(r" {14}by layer \d\d\.\d % \(layer [01]\) to \d\d\.\d % .*", lines[at + 1])


def test_json(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "zen.skip"
    record(model, "--prompt", TEXT, "--prompt-tokens", "40", "--rule", "top-p:0.5", "-o", str(file), "--json")
    told, trace = json.loads(capsys.readouterr().out), CodedTrace.open(file)
    assert (told["file"], told["prefill_tokens"], told["steps"], told["layers"]) == (str(file), 40, 5, 2)
    assert told["rule"] == "top-p:0.5" and (told["sinks"], told["recent"]) == (4, 16)
    assert told["skip"] == trace.realised_skip and told["coded_bytes"] == file.stat().st_size
    assert told["mass_kept"] == trace.header.parameters["mass_kept"] and len(told["mass_kept"]) == 2
    assert len(told["token_ids"]) == told["run"]["tokens_out"] == 6 and told["finish_reason"] == "length"


def test_a_prompt_gets_the_chat_template_and_a_jsonl_file_gives_its_first(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def tokens(*flags: str) -> int:
        record(model, *flags, "-o", str(tmp_path / "run.skip"))
        return CodedTrace.open(tmp_path / "run.skip").shape.prefill_tokens

    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"prompt_token_ids": [5, 6, 7]}\n{"prompt": "second"}\n')
    assert tokens("-i", str(lines)) == 3
    assert tokens("--prompt", "Why?", "--no-chat") == 5
    assert tokens("--prompt", "Why?") > 5


def test_standard_input_is_a_text(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfSo\nit goes")))
    record(model, "-i", "-", "-o", str(tmp_path / "run.skip"))
    assert CodedTrace.open(tmp_path / "run.skip").shape.prefill_tokens == 11


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "no prompt"),
        (["--prompt", "So", "-i", "x.txt"], "not both"),
        (["-i", "missing.txt"], "missing.txt cannot be read"),
        (["-i", "empty.txt"], "holds no text"),
        (["-i", "latin.txt"], "is not UTF-8 (byte 0xe9 at 3)"),
        (["--prompt", "So", "--rule", "best"], "--rule best is none of"),
        (["--prompt", "So", "--output", "missing/run.skip"], "create the directory first"),
        (["--prompt", "So", "--sinks", "-1"], "--sinks"),
        (
            ["-i", "latin.txt", "--output", "./latin.txt"],
            "--output ./latin.txt would be written over --input latin.txt",
        ),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Told before the model is looked at, and what looks at it imported."""
    monkeypatch.setitem(sys.modules, "penstock.llm", None)
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text(" \n")
    Path("latin.txt").write_bytes(b"caf\xe9")
    record("no-such-model", *(["--output", "run.skip"] if "--output" not in flags else []), *flags, status=2)
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1 and "no-such-model" not in err
    assert not Path("run.skip").exists()


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "record", "--help"]) == 0
    assert "penstock trace record demo -i book.txt --prompt-tokens 600" in capsys.readouterr().out
