"""Config and tokenizer of a GGUF file as transformers makes them, kept so that only a file's first start parses it."""

import contextlib
import copy
import functools
import hashlib
import json
import shutil
import struct
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import numpy as np
import numpy.typing as npt
from transformers import AutoConfig, AutoTokenizer, modeling_gguf_pytorch_utils

from penstock.directories import cache_directory

FORMAT = 1
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, IndexError)
_SUMS = "checksums.json"


def load_config(path: Path) -> Any:
    """The config of a GGUF file; raises what transformers raises where it does not read the file."""
    kept = _Kept(path)
    if kept.has("config.json"):
        return AutoConfig.from_pretrained(str(kept.home), local_files_only=True)
    with _quick_reading():
        config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
        tokenizer = None
        with contextlib.suppress(*UNREADABLE):  # raised again where the tokenizer is asked for
            tokenizer = _convert_tokenizer(path)
    with contextlib.suppress(*UNREADABLE):  # no room, or it is not read back: the next start converts again
        kept.put(config, tokenizer)
    return config


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a GGUF file; raises what transformers raises where it does not read the file."""
    kept = _Kept(path)
    if kept.has("tokenizer.json"):
        return AutoTokenizer.from_pretrained(str(kept.home), local_files_only=True)
    with _quick_reading():
        return _convert_tokenizer(path)


def _convert_tokenizer(path: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)


class _Kept:
    """What was converted from one state of a GGUF file: a directory of small files, with their checksums."""

    def __init__(self, path: Path) -> None:
        stat = path.stat()
        versions = [metadata.version(name) for name in ("transformers", "tokenizers", "gguf")]
        state = json.dumps([FORMAT, str(path.resolve()), stat.st_size, stat.st_mtime_ns, versions])
        self.home = cache_directory() / "gguf" / hashlib.sha256(state.encode()).hexdigest()[:32]

    def has(self, name: str) -> bool:
        """Whether the file is there and everything lies as it was written."""
        try:
            sums = json.loads((self.home / _SUMS).read_bytes())
            return name in sums and sums == _checksums(self.home)
        except (OSError, ValueError, TypeError):
            return False

    def put(self, config: Any, tokenizer: Any | None) -> None:
        """Keep what gives the same again when it is read back."""
        self.home.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix="building-", dir=self.home.parent))
        try:
            config.save_pretrained(str(building))
            if not _same_config(config, building):
                return
            if tokenizer is not None:
                with_tokenizer = building / "with-tokenizer"
                tokenizer.save_pretrained(str(with_tokenizer))
                shutil.copy(building / "config.json", with_tokenizer)
                if _same_tokenizer(tokenizer, with_tokenizer):
                    shutil.copytree(with_tokenizer, building, dirs_exist_ok=True)
                shutil.rmtree(with_tokenizer)
            (building / _SUMS).write_text(json.dumps(_checksums(building)))
            shutil.rmtree(self.home, ignore_errors=True)
            building.rename(self.home)
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _checksums(directory: Path) -> dict[str, str]:
    files = [path for path in sorted(directory.iterdir()) if path.name != _SUMS]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _same_config(config: Any, directory: Path) -> bool:
    again = AutoConfig.from_pretrained(str(directory), local_files_only=True)
    ours, kept = config.to_dict(), again.to_dict()
    return type(again) is type(config) and {**ours, "_name_or_path": ""} == {**kept, "_name_or_path": ""}


def _same_tokenizer(tokenizer: Any, directory: Path) -> bool:
    """Some tokenizer classes build themselves anew from their vocabulary and lose what the file said otherwise."""
    again = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    return type(again) is type(tokenizer) and all(
        of(again) == of(tokenizer)
        for of in (
            lambda t: t.backend_tokenizer.to_str(),
            lambda t: t.special_tokens_map,
            lambda t: t.chat_template,
            lambda t: (t.padding_side, t.clean_up_tokenization_spaces, t.model_input_names),
        )
    )


@contextlib.contextmanager
def _quick_reading() -> Iterator[None]:
    """Lets transformers parse a GGUF file once, and with a reader that takes arrays whole, while it converts.

    Its tokenizer's conversion parses the file again for the config, and gguf's own reader makes several views of a
    memory map for each string of the vocabulary: 28 CPU-seconds for 49,152 tokens, 3 like this.
    """
    parse = functools.cache(modeling_gguf_pytorch_utils.load_gguf_checkpoint)

    def parse_once(path: str, return_tensors: bool = False) -> Any:
        return copy.deepcopy(parse(path, return_tensors=return_tensors))

    with (
        mock.patch.object(gguf, "GGUFReader", _Reader),
        mock.patch.object(modeling_gguf_pytorch_utils, "load_gguf_checkpoint", parse_once),
    ):
        yield


class _Reader(gguf.GGUFReader):  # type: ignore[misc]  # gguf is untyped
    """gguf's reader over a plain array; each element of an array is a part of its own, as there."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.view(np.ndarray) if isinstance(value, np.memmap) else value)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type != gguf.GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        kind, count = struct.unpack_from("<IQ", self.data, orig_offs)
        begin = orig_offs + 12
        head = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
        if kind == gguf.GGUFValueType.STRING:
            end, parts = self._strings(begin, count)
        elif (scalar := self.gguf_scalar_to_np.get(kind)) is not None:
            values = self._get(begin, scalar, count)
            end, parts = begin + values.nbytes, list(values.reshape(-1, 1))
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        types = [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(kind)][: 1 + bool(count)]
        return end - orig_offs, [*head, *parts], list(range(2, 2 + count)), types

    def _strings(self, at: int, count: int) -> tuple[int, list[npt.NDArray[Any]]]:
        """Where an array of strings ends, and the bytes of each."""
        data, length_of, parts = self.data, struct.Struct("<Q").unpack_from, []
        for _ in range(count):
            (length,) = length_of(data, at)
            parts.append(data[at + 8 : at + 8 + length])
            at += 8 + length
        return at, parts
