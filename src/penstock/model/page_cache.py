"""Converted pages on disk: built once, checked, then streamed by direct I/O like pages of a checkpoint."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch

from penstock.directories import cache_directory, sync_directory
from penstock.errors import DISK_FULL, UserError
from penstock.model.page_file import checksum, forget, write
from penstock.model.pages import Extent, Page, Slice
from penstock.model.parameter_source import ParameterSource
from penstock.quant.forms import named
from penstock.quant.grouped import Grouped

FORMAT = 1
INDEX, PAGES, ABOUT = "index.json", "pages.bin", "about"
CHUNK_BYTES = 8 << 20
CHECKED_AT_OPEN_BYTES = 1 << 30  # a second of reading on a fast disk
_SYNC_EVERY_BYTES = 256 << 20

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class CachedPages:
    """Pages that lie converted in one file.

    lease: their index, open and locked: whoever has it keeps them from being deleted, and a process that dies lets go.
    """

    pages: tuple[Page, ...]
    path: Path
    lease: IO[bytes]

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(page.nbytes for page in self.pages)


def cache_key(files: Iterable[Path], pages: Sequence[Page], *facts: str) -> str:
    """A name for the pages of these files: the same while their sizes, times and the layout stay the same.

    facts: whatever else decides the bytes, such as a converter's version.
    """
    stats = [(str(path.resolve()), path.stat()) for path in files]
    stored = sorted([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats)
    text = json.dumps([FORMAT, stored, _layout(pages), facts], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def fill(sources: Mapping[str, ParameterSource], page: Page, buffer: torch.Tensor) -> None:
    """Convert a page into a uint8 buffer of its size, some rows at a time as ``open_or_build`` does."""
    for slice_ in page.slices:
        for at, values in _chunks(sources[slice_.param], slice_, CHUNK_BYTES):
            begin = slice_.offset + at
            buffer[begin : begin + values.nbytes].copy_(torch.from_numpy(values))


def open_or_build(
    key: str,
    pages: Sequence[Page],
    sources: Mapping[str, ParameterSource],
    *,
    directory: Path | None = None,
    progress: Progress | None = None,
    disk_budget: int | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    about: Mapping[str, str] = MappingProxyType({}),
) -> CachedPages | None:
    """The converted pages, from the cache or built now (``progress``: bytes done, bytes in all).

    ``directory`` holds caches by key; the user's by default. Memory: about ``chunk_bytes`` of converted rows at a time.
    about: what a list of caches tells of this one. As long as the answer's ``lease`` is open, nobody deletes it.
    Two processes that want the same pages build them once: the second waits. A cache that is damaged or belongs to
    another layout is built again. Returns None where the pages exceed ``disk_budget`` bytes or the free space.
    """
    total = sum(page.nbytes for page in pages)
    if disk_budget is not None and total > disk_budget:
        return None
    root = directory or cache_directory() / "pages"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{key}.lock"):
            _sweep(root)
            home = root / key
            if (cached := _open(home, key, pages)) is not None:
                return cached
            shutil.rmtree(home, ignore_errors=True)
            if total > shutil.disk_usage(root).free:
                return None
            _build(home, key, pages, sources, progress, chunk_bytes, about)
            return _open(home, key, pages)
    except OSError as error:
        if error.errno in DISK_FULL:
            return None
        raise UserError(
            f"the page cache {root} cannot be used ({error.strerror}): set PENSTOCK_CACHE to another directory"
        ) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The system lets go of the lock of a process that dies, so a leftover lock file means nothing.
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep(root: Path) -> None:
    """Remove what interrupted builds of dead processes left; this process's own key is locked, so nobody builds it."""
    for leftover in root.glob("*.building"):
        with (root / f"{leftover.stem}.lock").open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(leftover, ignore_errors=True)


def _build(
    home: Path,
    key: str,
    pages: Sequence[Page],
    sources: Mapping[str, ParameterSource],
    progress: Progress | None,
    chunk_bytes: int,
    about: Mapping[str, str],
) -> None:
    building = home.with_name(f"{key}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        with (building / PAGES).open("w+b") as file:
            checksums = _write_pages(file.fileno(), pages, sources, progress, chunk_bytes)
        index = {"format": FORMAT, "key": key, "layout": _layout(pages), "checksums": checksums, ABOUT: dict(about)}
        with (building / INDEX).open("w") as text:
            json.dump(index, text)
            text.flush()
            os.fsync(text.fileno())
        building.rename(home)
        sync_directory(home.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_pages(
    file: int,
    pages: Sequence[Page],
    sources: Mapping[str, ParameterSource],
    progress: Progress | None,
    chunk_bytes: int,
) -> list[int]:
    total = sum(page.nbytes for page in pages)
    if hasattr(os, "posix_fallocate") and total:
        os.posix_fallocate(file, 0, total)  # a full disk shows itself now
    else:
        os.ftruncate(file, total)
    checksums: list[int] = []
    synced = 0
    for page, offset in zip(pages, _offsets(pages), strict=True):
        for slice_ in page.slices:
            for at, values in _chunks(sources[slice_.param], slice_, chunk_bytes):
                write(file, values, offset + slice_.offset + at)
                if progress is not None:
                    progress(offset + slice_.offset + at + values.nbytes, total)
        checksums.append(checksum(file, offset, page.nbytes))
        end = offset + page.nbytes
        if end - synced >= _SYNC_EVERY_BYTES or end == total:
            # Written bytes leave the system's memory early: dirty ones count against a memory limit.
            os.fsync(file)
            forget(file)
            synced = end
    if progress is not None:
        progress(total, total)
    return checksums


def _chunks(source: ParameterSource, slice_: Slice, chunk_bytes: int) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """The slice's bytes, some rows at a time, each with its place in the slice."""
    count = slice_.stop - slice_.start
    row_bytes = slice_.nbytes // max(count, 1)
    wide_bytes = max(row_bytes, 2 * prod(slice_.shape[1:]))  # of a row before it is packed
    step = max(1, chunk_bytes // max(wide_bytes, 1)) if getattr(source, "by_rows", True) else max(count, 1)
    for start in range(slice_.start, slice_.stop, step):
        values = _converted(source, slice_, start, min(start + step, slice_.stop))
        yield (start - slice_.start) * row_bytes, values


def _converted(source: ParameterSource, slice_: Slice, start: int, stop: int) -> npt.NDArray[np.uint8]:
    form = named(slice_.dtype)
    if form is not None and not isinstance(form, Grouped):
        stored: npt.NDArray[np.uint8] = source.packed(start, stop)  # type: ignore[attr-defined]  # it has such a form
        return np.ascontiguousarray(stored).reshape(-1)
    values = (source.load(start, stop) if source.shape else source.load()).detach()
    if slice_.turned:
        values = values.transpose(-1, -2)
    if form is not None:
        from penstock.quant.rounding import pack  # imports numba: only where something is packed

        try:
            return pack(values.reshape(-1, values.shape[-1]).float().numpy(), form).reshape(-1)
        except ValueError as error:
            raise UserError(f"{slice_.param} cannot be packed in {form.bits} bits: {error}") from error
    dtype: torch.dtype = getattr(torch, slice_.dtype)
    return values.to(dtype).contiguous().reshape(-1).view(torch.uint8).numpy()  # rounded to nearest


def _open(home: Path, key: str, pages: Sequence[Page]) -> CachedPages | None:
    """The cache as it lies there, or None where it is absent, damaged or of another layout."""
    try:
        lease = (home / INDEX).open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return None
    fcntl.flock(lease, fcntl.LOCK_SH)  # before looking: what is being deleted is gone then
    if (located := _located(home, key, pages)) is None:
        lease.close()
        return None
    with contextlib.suppress(OSError):  # a cache that only others may write
        os.utime(home / INDEX)  # so that a list can tell when it was last used
    return CachedPages(located, home / PAGES, lease)


def _located(home: Path, key: str, pages: Sequence[Page]) -> tuple[Page, ...] | None:
    """The pages with their places in the file, if all is as it should be."""
    path = home / PAGES
    try:
        index: Any = json.loads((home / INDEX).read_bytes())
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    expected = {"format": FORMAT, "key": key, "layout": _layout(pages)}
    if not isinstance(index, dict) or {name: index.get(name) for name in expected} != expected:
        return None
    checksums = index.get("checksums")
    if not isinstance(checksums, list) or len(checksums) != len(pages) or size != sum(page.nbytes for page in pages):
        return None
    if not _sound(path, pages, checksums):
        return None
    return tuple(
        dataclasses.replace(page, extents=(Extent(str(path), offset, page.nbytes, 0),))
        for page, offset in zip(pages, _offsets(pages), strict=True)
    )


def _sound(path: Path, pages: Sequence[Page], checksums: Sequence[int]) -> bool:
    """Compare checksums: of all pages where these are few bytes, else of some spread evenly over the file."""
    total = sum(page.nbytes for page in pages)
    every = -(-total // CHECKED_AT_OPEN_BYTES) or 1
    checked = list(zip(pages, _offsets(pages), checksums, strict=True))[::every]
    with path.open("rb") as file:
        try:
            return all(checksum(file.fileno(), at, page.nbytes) == expected for page, at, expected in checked)
        finally:
            forget(file.fileno())


def _offsets(pages: Iterable[Page]) -> list[int]:
    offsets = [0]
    for page in pages:
        offsets.append(offsets[-1] + page.nbytes)
    return offsets[:-1]


def _layout(pages: Sequence[Page]) -> str:
    """A digest of all that decides which bytes lie where."""
    described = [[page.index, page.nbytes, [dataclasses.astuple(slice_) for slice_ in page.slices]] for page in pages]
    return hashlib.sha256(json.dumps(described, separators=(",", ":")).encode()).hexdigest()
