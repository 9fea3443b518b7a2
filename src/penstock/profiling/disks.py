"""The file systems of a host that the engine uses: of the checkpoint, the page cache and the offload directory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from penstock.machine.machine import Link
from penstock.memory.offload import make_offload, remove_offload
from penstock.model.pages import Extent
from penstock.profiling.disk import Disk, measure_read, mount_of
from penstock.profiling.scratch import BLOCK_BYTES, measure_kv, measure_write, own_file, scratch_bytes

Begin = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Disks:
    """Disks by where they are mounted, and what can be read of the one that weights are read from."""

    by_mount: dict[str, Disk]
    extents: Sequence[Extent]


@contextmanager
def measured_disks(
    checkpoint: Sequence[Extent] | None,
    offload_dir: Path,
    page_cache: Path,
    budget_s: float,
    file_bytes: int,
    kv_bytes: int,
    begin: Begin = lambda what: None,
) -> Iterator[Disks]:
    """Measure each file system once; the extents can be read as long as the context lasts.

    checkpoint: extents of its files; without any, weights are taken to lie where ``offload_dir`` is, and are read from
    a file that is written for it. Both directories exist. begin: told what comes next. file_bytes, kv_bytes: written at
    most. Raises UserError for a file that cannot be read and a disk without room.
    """
    directories = {mount_of(directory): directory for directory in (page_cache, offload_dir)}
    given = {mount_of(Path(checkpoint[0].path)): checkpoint} if checkpoint else {}
    mounts = list(dict.fromkeys([*given, mount_of(offload_dir), *directories]))
    share_s, found = budget_s / (len(mounts) + 1), dict[str, Disk]()
    with ExitStack() as kept:
        for mount in mounts:
            with ExitStack() as own:
                if mount not in given:
                    begin(f"writing a file to {directories[mount]}")
                    holder = own if given else kept  # the first file stays: weights are read from there
                    given[mount] = holder.enter_context(own_file(directories[mount], share_s / 2, file_bytes))
                begin(f"reading from the disk at {mount}")
                found[mount] = Disk(mount, measure_read(given[mount], share_s / 2))
        begin(f"writing to {offload_dir}")
        mount = mount_of(offload_dir)
        found[mount] = _written(found[mount], offload_dir, share_s, kv_bytes)
        yield Disks(found, given[mounts[0]])


def _written(disk: Disk, root: Path, budget_s: float, kv_bytes: int) -> Disk:
    """The disk with what writing gives."""
    most, directory = scratch_bytes(root, kv_bytes), make_offload(root)
    try:
        rate = measure_write(directory, most, budget_s / 3)
        kv_write, kv_read = measure_kv(directory, most, budget_s * 2 / 3)
    finally:
        remove_offload(directory)
    return replace(disk, write=link_of(rate, kv_write), kv_read=kv_read, kv_write=kv_write)


def link_of(rate: float, kv_rate: float, block_bytes: int = BLOCK_BYTES) -> Link:
    """The link whose blocks take as long as they did, and large pieces too; bytes per second."""
    return Link(rate, max(0.0, block_bytes / kv_rate - block_bytes / rate))
