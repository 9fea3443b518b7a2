from pathlib import Path
from types import SimpleNamespace
from typing import Any

from penstock.model.pages import Extent
from penstock.profiling.checkpoint import checkpoint_extents


def source(kind: str, path: Path) -> Any:
    return SimpleNamespace(kind=kind, path=path)


def test_every_file_of_weights_is_read_whole(tmp_path: Path) -> None:
    for name, nbytes in (("model-2.safetensors", 30), ("model-1.safetensors", 20), ("config.json", 5)):
        (tmp_path / name).write_bytes(bytes(nbytes))
    assert checkpoint_extents(source("safetensors", tmp_path)) == [
        Extent(str(tmp_path / "model-1.safetensors"), 0, 20, 0),
        Extent(str(tmp_path / "model-2.safetensors"), 0, 30, 0),
    ]


def test_a_gguf_file_is_its_own_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(bytes(7))
    assert checkpoint_extents(source("gguf", tmp_path / "m.gguf")) == [Extent(str(tmp_path / "m.gguf"), 0, 7, 0)]


def test_random_weights_lie_nowhere(tmp_path: Path) -> None:
    assert checkpoint_extents(source("random", tmp_path)) == []
