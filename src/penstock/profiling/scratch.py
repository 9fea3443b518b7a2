"""Files of a measurement's own: one to read where there is no checkpoint, and what KV and activations write."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import torch

from penstock.errors import UserError
from penstock.machine.limits import free_disk_bytes
from penstock.memory.buffers import aligned_buffer
from penstock.memory.offload import make_offload, remove_offload
from penstock.memory.scratch_file import ScratchFile
from penstock.model.pages import Extent
from penstock.units import format_bytes

BLOCK_BYTES = 64 << 10  # one KV block of one layer: 16 tokens of 8 heads of 128 in 16 bits
PIECE_BYTES = 8 << 20  # of a micro-batch's activations
FILE_BYTES = 4 << 30  # of what is written to be read again, at most: more than caches of a disk hold, if it can be
_FREE_SHARE = 10  # and at most this part of what is free
_NOISE_BYTES = 32 << 20
_LEAST_FILE_BYTES = 2 * _NOISE_BYTES
_STRIDE = 0x9E3779B97F4A7C15 - (1 << 64)  # added to noise, it makes other noise faster than drawing does
_IN_FLIGHT = 32  # transfers of KV handed over at once; the file's own threads take them one by one


def measure_kv(directory: Path, nbytes: int, budget_s: float, block_bytes: int = BLOCK_BYTES) -> tuple[float, float]:
    """Bytes per second of KV blocks (written, read), in a file with its space taken beforehand, as the KV store's.

    At most ``nbytes`` are written. Raises UserError where the disk has no room.
    """
    blocks = nbytes // block_bytes
    block = aligned_buffer(block_bytes).copy_(torch.randint(0, 256, (block_bytes,), dtype=torch.uint8))
    file = ScratchFile(directory / "kv", blocks * block_bytes)
    order = torch.randperm(blocks).tolist()
    try:
        written, write_s = _in_flight((file.write(n * block_bytes, block) for n in order), budget_s / 2)
        read, read_s = _read_back(file, [n * block_bytes for n in order[:written]], block_bytes, budget_s / 2)
    finally:
        file.close()
    return written * block_bytes / write_s, read * block_bytes / read_s


def _in_flight(transfers: Iterator["Future[None]"], budget_s: float) -> tuple[int, float]:
    """Run transfers, a batch handed over at a time, until all are done or the time is over; (how many, seconds)."""
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < budget_s or not done:
        batch = list(islice(transfers, _IN_FLIGHT))
        if not batch:
            break
        for transfer in batch:
            transfer.result()
        done += len(batch)
    return done, time.perf_counter() - start


def _read_back(file: ScratchFile, offsets: Sequence[int], block_bytes: int, budget_s: float) -> tuple[int, float]:
    """Read blocks as attention has them staged, a portion after another, the next being read beside; (how many,
    seconds)."""
    portions = [aligned_buffer(_IN_FLIGHT * block_bytes).zero_() for _ in range(2)]
    read, start, before = 0, time.perf_counter(), None
    for first, portion in zip(range(0, len(offsets), _IN_FLIGHT), cycle(portions), strict=False):
        blocks = [(offset, at * block_bytes) for at, offset in enumerate(offsets[first : first + _IN_FLIGHT])]
        arrival = file.read_blocks(blocks, block_bytes, portion)
        if before is not None:
            before.result()
        before, read = arrival, read + len(blocks)
        if time.perf_counter() - start > budget_s:
            break
    if before is not None:
        before.result()
    return read, time.perf_counter() - start


def measure_write(directory: Path, nbytes: int, budget_s: float, piece_bytes: int = PIECE_BYTES) -> float:
    """Bytes per second of large writes, as parked activations are: one after another, at most ``nbytes``."""
    piece = aligned_buffer(piece_bytes).copy_(torch.randint(0, 256, (piece_bytes,), dtype=torch.uint8))
    places = range(0, max(1, nbytes // piece_bytes) * piece_bytes, piece_bytes)
    file = ScratchFile(directory / "activations", places.stop, threads=1)
    written, start = 0, time.perf_counter()
    try:
        for place in places:
            file.write(place, piece).result()
            written += piece_bytes
            if time.perf_counter() - start > budget_s:
                break
        return written / (time.perf_counter() - start)
    finally:
        file.close()


@contextmanager
def own_file(root: Path, budget_s: float, most_bytes: int = FILE_BYTES) -> Iterator[list[Extent]]:
    """The extent of a file of noise that reads must fetch from the disk; it is removed at the end, however that comes.

    The file is smaller where little is free or the disk is slow. Raises UserError where next to nothing is free.
    """
    nbytes = scratch_bytes(root, most_bytes)
    directory = make_offload(root)
    try:
        path = directory / "read"
        yield [Extent(str(path), 0, _write_noise(path, nbytes, budget_s), 0)]
    finally:
        remove_offload(directory)


def scratch_bytes(root: Path, most_bytes: int = FILE_BYTES) -> int:
    """How much a measurement may write: not more than a part of what is free. UserError where that is too little."""
    free = free_disk_bytes(root)
    if free // _FREE_SHARE < _LEAST_FILE_BYTES:
        raise UserError(
            f"{root} has {format_bytes(free)} free, and measuring its disk takes"
            f" {format_bytes(_FREE_SHARE * _LEAST_FILE_BYTES)}: give another --offload-dir"
        )
    return min(most_bytes, free // _FREE_SHARE)


def _write_noise(path: Path, nbytes: int, budget_s: float) -> int:
    """Write noise, at least two pieces if there may be two, and have the page cache forget it; the bytes written."""
    noise = torch.empty(min(_NOISE_BYTES, nbytes) // 8, dtype=torch.int64).random_()
    written, start = 0, time.perf_counter()
    with path.open("wb", buffering=0) as file:
        while written + noise.nbytes <= nbytes:
            if written >= _LEAST_FILE_BYTES and time.perf_counter() - start > budget_s:
                break
            noise.add_(_STRIDE)
            file.write(noise.numpy().data.cast("B"))
            os.fdatasync(file.fileno())  # piece by piece, so that the time says how fast the disk takes them
            written += noise.nbytes
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return written
