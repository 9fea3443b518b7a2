"""What a safetensors checkpoint holds, from its headers alone: names, dtypes, shapes and places of tensors."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from penstock.errors import UserError
from penstock.model.parameter_source import Raw

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
LENGTH_BYTES = 8  # a little-endian count of header bytes opens every file
LONGEST_HEADER = 100_000_000  # what the format's own reader accepts

# The format's dtype names, torch's, and bits per element (some formats pack two elements in a byte).
DTYPES: Mapping[str, tuple[str, int]] = {
    "BOOL": ("bool", 8),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "U16": ("uint16", 16),
    "I16": ("int16", 16),
    "U32": ("uint32", 32),
    "I32": ("int32", 32),
    "U64": ("uint64", 64),
    "I64": ("int64", 64),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F4": ("float4_e2m1fn_x2", 4),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "F32": ("float32", 32),
    "F64": ("float64", 64),
    "C64": ("complex64", 64),
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as it lies in a file: ``nbytes`` at byte ``offset`` of ``path``; ``dtype`` is torch's name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: str
    offset: int
    nbytes: int

    @property
    def raw(self) -> Raw:
        """Its bytes as a parameter's."""
        return Raw(self.shape, self.dtype, ((self.path, self.offset, self.nbytes),))


class SafetensorsIndex:
    """The tensors of a checkpoint directory, single or sharded, checked against the sizes of its files.

    tensors: by stored name. total_bytes: of all tensors. Reads headers only. Raises UserError, naming the file, for
    what is missing, cut short or not safetensors.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        placed = _read_index(self.directory)
        shards = sorted(set(placed.values())) if placed else _files_without_index(self.directory)
        self.tensors: Mapping[str, StoredTensor] = {
            tensor.name: tensor for shard in shards for tensor in read_header(self.directory / shard)
        }
        self.total_bytes: int = sum(tensor.nbytes for tensor in self.tensors.values())
        for name, shard in placed.items():
            held = self.tensors.get(name)
            if held is None or Path(held.path).name != shard:
                raise UserError(f"{INDEX_NAME} places {name} in {shard}, which does not hold it. Download both again.")


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors of one file, checked against its size; UserError where it is damaged, with what is wrong."""
    try:
        actual_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if actual_bytes < LENGTH_BYTES:
                raise _damaged(path, f"it has {actual_bytes} bytes")
            if header_bytes > LONGEST_HEADER:
                raise _damaged(path, f"its header would be {header_bytes} bytes long")
            if LENGTH_BYTES + header_bytes > actual_bytes:
                raise _short(path, LENGTH_BYTES + header_bytes - actual_bytes, LENGTH_BYTES + header_bytes)
            text = file.read(header_bytes)
    except FileNotFoundError as error:
        raise UserError(f"{path.name} is missing from {path.parent}. Download it again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    start = LENGTH_BYTES + header_bytes
    try:
        header = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise _damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a table of tensors")
    tensors = [_entry(path, name, entry, start) for name, entry in header.items() if name != "__metadata__"]
    promised_bytes = max((tensor.offset + tensor.nbytes for tensor in tensors), default=start)
    if promised_bytes > actual_bytes:
        raise _short(path, promised_bytes - actual_bytes, promised_bytes)
    return tensors


def _entry(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"its entry for {name} is incomplete") from error
    if not isinstance(dtype, str):
        raise _damaged(path, f"its entry for {name} is incomplete")
    if dtype not in DTYPES:
        raise UserError(f"{path.name} stores {name} as {dtype}, which is not read.")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)) or begin > end:
        raise _damaged(path, f"its entry for {name} has impossible numbers")
    torch_name, bits = DTYPES[dtype]
    if prod(shape) * bits != 8 * (end - begin):
        needed_bytes = prod(shape) * bits // 8
        raise _damaged(path, f"{name} of shape {list(shape)} in {dtype} needs {needed_bytes} bytes, has {end - begin}")
    return StoredTensor(name, torch_name, shape, str(path), start + begin, end - begin)


def _read_index(directory: Path) -> dict[str, str]:
    """Which shard holds each tensor; empty without an index file."""
    path = directory / INDEX_NAME
    if not path.exists():
        return {}
    try:
        placed = json.loads(path.read_bytes())["weight_map"]
        plain = all(isinstance(shard, str) and Path(shard).name == shard for shard in placed.values())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not an index of shards. Download it again.") from error
    if not plain:
        raise UserError(f"{path} names files outside its directory. Download it again.")
    return dict(placed)


def _files_without_index(directory: Path) -> list[str]:
    if (directory / SINGLE_NAME).exists():
        return [SINGLE_NAME]
    found = sorted(path.name for path in directory.glob("*.safetensors"))
    if not found:
        raise UserError(f"{directory} holds no .safetensors file; --random-weights runs a model from its config alone.")
    numbers = [re.fullmatch(r".*-\d+-of-(\d+)\.safetensors", name) for name in found]
    if all(number is not None and int(number[1]) == len(found) for number in numbers) or len(found) == 1:
        return found
    raise UserError(f"{directory} holds {len(found)} .safetensors files but no {INDEX_NAME}. Download it.")


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path.name} is damaged: {what}. Download it again.")


def _short(path: Path, missing_bytes: int, promised_bytes: int) -> UserError:
    missing = f"{missing_bytes / 1e9:.1f} GB" if missing_bytes >= 1e8 else f"{missing_bytes} bytes"
    return UserError(f"{path.name} is {missing} short: its header promises {promised_bytes} bytes. Download it again.")
