"""What a trace file says of itself, in the block that it begins with."""

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from penstock.trace.skip_trace import WORD_BITS, TraceShape
from penstock.units import format_bytes

MAGIC = b"\x89SKIP\r\n\x1a"  # a transfer in text mode spoils it
VERSION = 1
BLOCK_BYTES = 16 << 10  # a fixed size: the counts that are only known at the end are written over it
LARGEST_BYTES = 256 << 20  # of one step's bits, and of one chunk's unless it is a single step
PREFIX = struct.Struct("<8sII")  # magic, version, crc32 of the rest of the block

Parameter = bool | int | float | str | list[float] | None


@dataclass(frozen=True)
class TraceHeader:
    """What a trace is of: all that is known when it is begun.

    rule: what chose the tokens to skip, such as ``synth`` or ``top-k``; parameters: that rule's settings.
    model, prompt_hash: what it was recorded from; empty where it was not.
    """

    prefill_tokens: int
    layers: int
    rule: str
    model: str = ""
    prompt_hash: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """What follows the block: known when the last step is written.

    chunk_steps: steps of every chunk but the last. skipped: bits that are set. file_bytes: the whole file, block
    included. checksum: crc32 of the chunks' own, in order.
    """

    steps: int
    chunk_steps: int
    skipped: int
    file_bytes: int
    checksum: int


class BadBlock(Exception):
    """A block that is none; its text says why, ``offset`` the byte where."""

    def __init__(self, offset: int, why: str) -> None:
        super().__init__(why)
        self.offset = offset


_Count = Annotated[int, Field(ge=0, lt=1 << 40)]
_Positive = Annotated[int, Field(ge=1, lt=1 << 40)]
_Crc = Annotated[int, Field(ge=0, lt=1 << 32)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Header(_Form):
    prefill_tokens: _Count
    layers: _Positive
    rule: str
    model: str
    prompt_hash: str
    parameters: dict[str, Parameter]


class _Contents(_Form):
    steps: _Positive
    chunk_steps: _Positive
    skipped: Annotated[int, Field(ge=0)]
    file_bytes: Annotated[int, Field(ge=BLOCK_BYTES)]
    checksum: _Crc


class _Block(_Form):
    header: _Header
    contents: _Contents

    @model_validator(mode="after")
    def _agrees(self) -> "_Block":
        header, contents = self.header, self.contents
        shape = TraceShape(header.prefill_tokens, contents.steps, header.layers)
        chunk_steps = min(contents.chunk_steps, contents.steps)
        if shape.step_bytes > LARGEST_BYTES or (chunk_steps > 1 and chunk_steps * shape.step_bytes > LARGEST_BYTES):
            raise ValueError(
                f"{chunk_steps:,} steps of {shape.layers:,} layers and {shape.tokens:,} tokens in a chunk:"
                f" {format_bytes(chunk_steps * shape.step_bytes)}, and no chunk exceeds {format_bytes(LARGEST_BYTES)}"
            )
        if contents.skipped > existing_bits(shape):
            raise ValueError(f"{contents.skipped:,} skipped tokens in all, where {existing_bits(shape):,} exist")
        return self


def existing_bits(shape: TraceShape) -> int:
    """Tokens that could be skipped, over all steps and layers."""
    return shape.layers * (shape.steps * shape.prefill_tokens + shape.steps * (shape.steps - 1) // 2)


def words_at(prefill_tokens: int, step: int) -> int:
    """uint64 words that hold the tokens which exist at a step; at least one."""
    return max(1, -(-(prefill_tokens + step) // WORD_BITS))


def encode_block(header: TraceHeader, contents: Contents) -> bytes:
    """The block; ValueError where the parameters are too long for it."""
    told = {"header": asdict(header), "contents": asdict(contents)}
    text = json.dumps(told, separators=(",", ":"), allow_nan=False).encode()
    room = BLOCK_BYTES - PREFIX.size
    if len(text) > room:
        raise ValueError(f"the header takes {len(text):,} bytes, and {room:,} is the most: shorten its parameters")
    padded = text.ljust(room)
    return PREFIX.pack(MAGIC, VERSION, zlib.crc32(padded)) + padded


def decode_block(block: bytes) -> tuple[TraceHeader, Contents]:
    """What ``encode_block`` wrote; BadBlock for anything else."""
    if not block.startswith(MAGIC[: len(block)]) or not block:
        raise BadBlock(0, "it does not begin as a trace does")
    if len(block) < BLOCK_BYTES:
        raise BadBlock(len(block), f"it ends within its header, which takes {BLOCK_BYTES:,} bytes")
    _, version, crc = PREFIX.unpack_from(block)
    if version != VERSION:
        raise BadBlock(len(MAGIC), f"it is of version {version}, and this penstock reads version {VERSION}")
    text = block[PREFIX.size :]
    if zlib.crc32(text) != crc:
        raise BadBlock(PREFIX.size, "its header does not match its checksum")
    try:
        told = _Block.model_validate_json(text)
    except ValidationError as error:
        raise BadBlock(PREFIX.size, f"its header is wrong: {_told(error)}") from error
    return TraceHeader(**told.header.model_dump()), Contents(**told.contents.model_dump())


def _told(error: ValidationError) -> str:
    """The first mistake, and where."""
    first: Any = error.errors()[0]
    message = str(first["msg"]).removeprefix("Value error, ")
    return ": ".join([*[".".join(str(part) for part in first["loc"])][: len(first["loc"])], message])
