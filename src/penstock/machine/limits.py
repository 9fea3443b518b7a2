"""How much memory and disk this process may take. Bytes everywhere.

``root`` is where ``/proc`` and ``/sys`` are found.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_UNLIMITED_BYTES = 1 << 62  # cgroup v1 writes 'no limit' as 2^63 less a page


@dataclass(frozen=True, slots=True)
class _Group:
    """One level of a cgroup hierarchy and its files' names in that version."""

    directory: Path
    limit_file: str
    usage_file: str
    cache_field: str

    def limit_bytes(self) -> int | None:
        limit = _integer(self.directory / self.limit_file)
        return limit if limit is not None and limit < _UNLIMITED_BYTES else None

    def free_bytes(self, limit: int) -> int:
        """What may still be taken: page cache that the kernel gives up without ado counts as free."""
        usage = _integer(self.directory / self.usage_file) or 0
        cache = _fields(self.directory / "memory.stat").get(self.cache_field, 0)
        return max(0, limit - max(0, usage - cache))


def memory_limit_bytes(root: str | Path = "/") -> int:
    """The most this process can ever have: physical memory or the tightest cgroup limit above it (v1 and v2)."""
    physical = _fields(Path(root, "proc/meminfo"), unit=1024).get("MemTotal") or psutil.virtual_memory().total
    limits = [limit for group in _groups(Path(root)) if (limit := group.limit_bytes()) is not None]
    return min([physical, *limits])


def available_bytes(root: str | Path = "/") -> int:
    """What this process can still take now without swapping or being killed."""
    free = _fields(Path(root, "proc/meminfo"), unit=1024).get("MemAvailable")
    rooms = [group.free_bytes(limit) for group in _groups(Path(root)) if (limit := group.limit_bytes()) is not None]
    return min([psutil.virtual_memory().available if free is None else free, *rooms])


def resident_bytes(root: str | Path = "/") -> int:
    """Physical memory of this process now, libraries and other mapped files included."""
    try:
        with open(f"{root}/proc/self/statm", "rb", buffering=0) as statm:  # a sweep asks after every page: no Path
            return int(statm.read(256).split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return psutil.Process().memory_info().rss


def peak_resident_bytes(root: str | Path = "/") -> int:
    """The most ``resident_bytes`` has been since the process began."""
    peak = _fields(Path(root, "proc/self/status"), unit=1024).get("VmHWM")
    return resident_bytes(root) if peak is None else peak


def free_disk_bytes(path: str | Path) -> int:
    """What an ordinary user may still write where ``path`` is or, when it does not exist yet, would be."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _groups(root: Path) -> Iterator[_Group]:
    """This process's memory cgroups, innermost first; levels that the mount does not show are left out."""
    memberships = root / "proc/self/cgroup"
    if not memberships.exists():
        return
    for line in memberships.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        inner = Path(path.lstrip("/"))
        for level in (inner, *inner.parents):
            if controllers == "":
                for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                    yield _Group(root / mount / level, "memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                directory = root / "sys/fs/cgroup/memory" / level
                yield _Group(directory, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _integer(path: Path) -> int | None:
    """The number a file holds; None where there is no file or it says ``max``."""
    if not path.exists():
        return None
    text = path.read_text().strip()
    return int(text) if text.isdecimal() else None


def _fields(path: Path, unit: int = 1) -> dict[str, int]:
    """A file of ``name number`` lines (``name: number kB`` in units of 1024)."""
    if not path.exists():
        return {}
    words = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    return {line[0]: int(line[1]) * unit for line in words if len(line) > 1 and line[1].isdecimal()}
