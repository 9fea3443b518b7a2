"""The header of a GGUF file: what it says of itself and where its tensors lie, with every number checked."""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from penstock.errors import UserError

Scalar = str | int | float | bool

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 8


class _Damaged(Exception):
    """What is wrong with a header; becomes a UserError that names the file."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One stored tensor. shape: in torch's order. kind: its quantisation. nbytes: from ``offset`` of the file on."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file whose header has been read and found sound.

    metadata: its scalars and strings by key (arrays, such as the vocabulary, are left out).
    """

    path: Path
    metadata: Mapping[str, Scalar]
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture (``llama``, ``qwen2moe``)."""
        return str(self.metadata["general.architecture"])

    def read(self, tensor: GgufTensor, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows [start, stop) of a tensor's first dimension in float32, shape (stop - start, …); reads no other bytes.

        A vector's elements share quantisation blocks, so a vector is read whole and then cut.
        """
        whole = len(tensor.shape) < 2
        raw = self._bytes(tensor, 0, (tensor.nbytes,)) if whole else self.packed(tensor, start, stop)
        values: npt.NDArray[np.float32] = gguf.dequantize(raw, tensor.kind)
        return values[start:stop] if whole else values

    def packed(self, tensor: GgufTensor, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Rows [start, stop) of a matrix or a stack of them as they are stored, (stop - start, …, bytes of a line)."""
        line_bytes = tensor.nbytes // math.prod(tensor.shape[:-1])
        row_bytes = tensor.nbytes // tensor.shape[0]
        return self._bytes(tensor, start * row_bytes, (stop - start, *tensor.shape[1:-1], line_bytes))

    def _bytes(self, tensor: GgufTensor, begin: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        # Plain reads rather than a memory map: mapped pages would count as this process's own memory.
        count = math.prod(shape)
        try:
            raw = np.fromfile(self.path, dtype=np.uint8, count=count, offset=tensor.offset + begin)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read any more ({error.strerror}): put it back as it was") from error
        if raw.size != count:
            raise UserError(f"{self.path} ended while {tensor.name} was read: it was changed or truncated meanwhile")
        return raw.reshape(shape)


def read_header(path: Path) -> GgufFile:
    """Read and check the header of a GGUF file of version 2 or 3.

    Raises UserError, naming the file, where it is no GGUF, is damaged or truncated, is one part of several, or holds a
    quantisation that cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size == 0:
                raise _Damaged("it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as bytes_:
                metadata, tensors = _parse(bytes_, size)
    except _Damaged as damage:
        raise UserError(f"{path} is not a GGUF file that can be read: {damage}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    parts = metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise UserError(f"{path} is one of {parts} parts: join them first (llama-gguf-split --merge)")
    if not isinstance(metadata.get("general.architecture"), str):
        raise UserError(f"{path} does not say its architecture (general.architecture): convert it again")
    for tensor in {tensor.kind: tensor for tensor in tensors.values()}.values():
        if not _readable(tensor.kind):
            raise UserError(f"{path} holds {tensor.name} as {tensor.kind.name}, which cannot be read here")
    return GgufFile(path, metadata, tensors)


def _readable(kind: gguf.GGMLQuantizationType) -> bool:
    type_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    try:
        gguf.dequantize(np.zeros((1, type_bytes), dtype=np.uint8), kind)
    except NotImplementedError:  # what gguf raises for a kind that it only names
        return False
    return True


class _Cursor:
    """Reads little-endian values one after another and never past the end."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data, self.size, self.at = data, size, 0

    def skip(self, nbytes: int) -> int:
        """Step over bytes and return where they began."""
        begin = self.at
        if nbytes > self.size - begin:
            raise _Damaged(f"its header goes on past its end at {self.size:,} bytes: it is truncated or damaged")
        self.at += nbytes
        return begin

    def scalar(self, code: str) -> int | float | bool:
        """The next value of a struct code."""
        value: int | float | bool = struct.unpack_from("<" + code, self.data, self.skip(struct.calcsize("<" + code)))[0]
        return value

    def integer(self, code: str) -> int:
        """The next value of an integer's struct code."""
        return int(self.scalar(code))

    def string(self) -> str:
        """The next string."""
        length = self.integer("Q")
        begin = self.skip(length)
        try:
            return self.data[begin : begin + length].decode()
        except UnicodeDecodeError:
            raise _Damaged(f"the text at byte {begin:,} is not UTF-8") from None

    def skip_array(self) -> None:
        """Step over the next array's values."""
        kind, count = self.integer("I"), self.integer("Q")
        if kind in _SCALARS:
            self.skip(struct.calcsize("<" + _SCALARS[kind]) * count)
        elif kind == _STRING:
            for _ in range(count):
                self.skip(self.integer("Q"))
        elif kind == _ARRAY:
            for _ in range(count):
                self.skip_array()
        else:
            raise _Damaged(f"an array holds values of unknown kind {kind}")


def _parse(data: mmap.mmap, size: int) -> tuple[dict[str, Scalar], dict[str, GgufTensor]]:
    cursor = _Cursor(data, size)
    if data[:4] != b"GGUF":
        raise _Damaged(f"it begins with {data[:4]!r} instead of b'GGUF'")
    cursor.skip(4)
    version = cursor.integer("I")
    if version & 0xFFFF == 0:
        raise _Damaged("it is big-endian, which is not supported")
    if version not in _VERSIONS:
        raise _Damaged(f"its version is {version}, supported are {' and '.join(map(str, _VERSIONS))}")
    tensor_count, key_count = cursor.integer("Q"), cursor.integer("Q")
    metadata: dict[str, Scalar] = {}
    for _ in range(key_count):
        key, kind = cursor.string(), cursor.integer("I")
        if kind == _ARRAY:
            cursor.skip_array()
        elif kind == _STRING:
            metadata[key] = cursor.string()
        elif kind in _SCALARS:
            metadata[key] = cursor.scalar(_SCALARS[kind])
        else:
            raise _Damaged(f"{key!r} has the unknown kind {kind}")
    entries = [_tensor_entry(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _Damaged(f"its alignment is {alignment}, which is no power of two")
    data_start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, relative in entries:
        tensor = _located(name, shape, kind, data_start + relative)
        end = tensor.offset + tensor.nbytes
        if end > size:
            raise _Damaged(f"tensor {name} ends at byte {end:,} and the file at {size:,}: it is truncated")
        if name in tensors:
            raise _Damaged(f"tensor {name} is there twice")
        tensors[name] = tensor
    return metadata, tensors


def _tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, dimensions = cursor.string(), cursor.integer("I")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise _Damaged(f"tensor {name!r} has {dimensions} dimensions")
    lengths = [cursor.integer("Q") for _ in range(dimensions)]
    return name, tuple(reversed(lengths)), cursor.integer("I"), cursor.integer("Q")


def _located(name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
    try:
        quantisation = gguf.GGMLQuantizationType(kind)
    except ValueError:
        raise _Damaged(f"tensor {name} is of the unknown type {kind}") from None
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[quantisation]
    if shape[-1] % block_values or 0 in shape:
        raise _Damaged(f"tensor {name} of shape {shape} does not divide into {quantisation.name} blocks")
    return GgufTensor(name, shape, quantisation, offset, math.prod(shape) // block_values * block_bytes)
