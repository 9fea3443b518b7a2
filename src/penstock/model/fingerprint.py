"""A model in a few characters: the same as long as its answers are bound to be the same."""

import hashlib
import json
from pathlib import Path

from penstock.model.source import Source

HEX = 16
_SMALL = ("*.json", "*.jinja", "*.model", "*.txt")  # tokenizer, chat template, generation_config
_BEGINNING = 1 << 20  # of a file of weights: its header, or most of it


def fingerprint(source: Source) -> str:
    """The model's kind and a digest of its config, its small files, and the names, sizes and beginnings of its weights.

    Where it lies and what its directory is called does not matter; weights are not read through.
    """
    digest = hashlib.blake2b(digest_size=HEX // 2)
    config = {name: value for name, value in source.config.to_dict().items() if not name.startswith("_")}
    config.pop("transformers_version", None)
    said = source.generation_config.to_dict() if source.generation_config is not None else {}
    said.pop("transformers_version", None)
    digest.update(json.dumps([source.kind, config, said], sort_keys=True, default=str).encode())
    for path in _files(source):
        digest.update(f"\0{path.name}\0{path.stat().st_size}\0".encode())
        whole = any(path.match(small) for small in _SMALL)
        with path.open("rb") as file:  # in pieces: whatever lies beside a model may be large
            while part := file.read(_BEGINNING):
                digest.update(part)
                if not whole:
                    break
    return f"{source.config.model_type} {digest.hexdigest()}"


def _files(source: Source) -> list[Path]:
    if source.kind == "gguf":
        return [source.path]
    weights = ("*.safetensors",) if source.kind == "safetensors" else ()
    return sorted(path for pattern in (*_SMALL, *weights) for path in source.path.glob(pattern) if path.is_file())
