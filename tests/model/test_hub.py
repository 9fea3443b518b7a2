"""Fetching a model's files: how far it is told, whatever the hub's library makes of its bars."""

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import UserError
from penstock.model import hub
from penstock.model.source import resolve


def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *files: tuple[int, int]) -> list[tuple[int, int]]:
    """What is told of files fetched one after another: (bytes of each, those that are here already)."""
    told: list[tuple[int, int]] = []

    def snapshot(repository: str, allow_patterns: list[str], ignore_patterns: list[str], tqdm_class: Any) -> str:
        assert "*.safetensors" in allow_patterns
        how = {"unit": "B", "unit_scale": True, "initial": 0, "total": 0, "name": "a bar", "disable": None}
        counting, bar = tqdm_class(total=len(files), desc="files"), tqdm_class(**how)
        for nbytes, here in files:
            bar.total += nbytes
            bar.update(here)
            bar.refresh()
            bar.update(nbytes - here)
            bar.refresh()
            counting.update(1)
            counting.refresh()
        bar.close()
        counting.close()
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert hub.fetch_weights("some/model", tmp_path, lambda *bytes: told.append(bytes)) == tmp_path
    return list(dict.fromkeys(told))


def test_bytes_are_told_and_files_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    assert fetched(tmp_path, monkeypatch, (100, 0), (50, 20)) == [(100, 100), (120, 150), (150, 150)]
    assert fetched(tmp_path, monkeypatch) == [], "all of it is here already"
    assert capfd.readouterr() == ("", "")


def test_an_index_says_how_much_it_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 400}, "weight_map": {}}))
    assert fetched(tmp_path, monkeypatch, (100, 0), (50, 20)) == [(100, 400), (120, 400), (150, 400)]
    index.write_text("{")
    assert fetched(tmp_path, monkeypatch, (100, 0)) == [(100, 100)]


def test_a_model_that_the_hub_has_as_pickles_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(UserError, match=r"some/model has no \.safetensors files.*save_pretrained"):
        resolve("some/model")
