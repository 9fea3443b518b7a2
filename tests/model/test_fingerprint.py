"""A model's fingerprint: the same wherever it lies, another one as soon as its answers may be others."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from penstock.model import fingerprint as fingerprint_of
from penstock.model.fingerprint import fingerprint
from penstock.model.source import Source

BEGINNING = fingerprint_of._BEGINNING


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}" + " " * 2 * BEGINNING + "end")
    (folder / "model.safetensors").write_bytes(b"header" + bytes(BEGINNING) + b"weights")
    (folder / "README.md").write_text("words")
    return folder


def of(folder: Path, **config: Any) -> str:
    return fingerprint(Source("name", "safetensors", folder, hf.LlamaConfig(**config), None, "bfloat16"))


def test_it_is_the_same_wherever_the_model_lies(model: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(model, tmp_path / "elsewhere")
    (elsewhere / "README.md").unlink()
    assert of(model) == of(elsewhere)
    assert of(model).startswith("llama ") and len(of(model)) == len("llama ") + fingerprint_of.HEX


def test_small_files_count_to_their_end(model: Path) -> None:
    before = of(model)
    text = (model / "tokenizer.json").read_text()
    (model / "tokenizer.json").write_text(text.replace("end", "END"))
    assert of(model) != before


@pytest.mark.parametrize(("place", "same"), [(2, False), (BEGINNING + 8, True)])
def test_weights_count_by_their_beginning_and_their_size(model: Path, place: int, same: bool) -> None:
    before, path = of(model), model / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert (of(model) == before) == same
    path.write_bytes(data + b"more")
    assert of(model) != before


def test_the_config_counts(model: Path) -> None:
    assert of(model) != of(model, rope_theta=5e5)
