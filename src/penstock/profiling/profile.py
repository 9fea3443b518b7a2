"""A profile: what was measured on a host, when and with which versions, and whether that still holds here."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from penstock.machine.limits import free_disk_bytes, memory_limit_bytes
from penstock.machine.machine import Machine
from penstock.profiling.disk import Disk, mount_of

PACKAGES = ("penstock", "torch", "numba")  # whose kernels were measured
_KERNELS = "7"  # raised when they became faster or slower by much: profiles are made anew


@dataclass(frozen=True, slots=True)
class Host:
    """What tells one machine from another. cores: that this process may use. gpu: its name, None without one."""

    name: str
    cpu: str
    cores: int
    memory_bytes: int
    gpu: str | None = None

    @classmethod
    def here(cls, gpu: str | None = None) -> "Host":
        """This host."""
        return cls(platform.node(), cpu_model(), usable_cores(), memory_limit_bytes(), gpu)


@dataclass(frozen=True, slots=True)
class Profile:
    """What was measured.

    measured: when, in UTC. form: ``long`` or ``short``. seconds: that it took. disks: by where they are mounted;
    ``machine.links`` has those of the checkpoint and of the offload directory that were measured first. extra: further
    rates, by name, for people.
    """

    host: Host
    measured: datetime
    form: str
    seconds: float
    versions: Mapping[str, str]
    machine: Machine
    disks: Mapping[str, Disk] = field(default_factory=dict)
    extra: Mapping[str, float] = field(default_factory=dict)

    def machine_at(self, checkpoint: Path | None, offload: Path) -> Machine:
        """The machine with the links of the file systems that weights are read from and that KV is offloaded to.

        Where one was not measured its links stay as they are.
        """
        links = dict(self.machine.links)
        if disk := self.disks.get(mount_of(checkpoint if checkpoint is not None else offload)):
            links["disk→cpu"] = replace(disk.read, kv_bytes_per_s=disk.kv_read)
        if (disk := self.disks.get(mount_of(offload))) and disk.write is not None:
            links["cpu→disk"] = replace(disk.write, kv_bytes_per_s=disk.kv_write)
        return replace(self.machine, links=links, memory={**self.machine.memory, "disk": free_disk_bytes(offload)})

    def lacks(self, checkpoint: Path | None, offload: Path) -> list[Path]:
        """Of a checkpoint and an offload directory, those whose file system was not measured."""
        written = self.disks.get(mount_of(offload))
        unread = [checkpoint] if checkpoint is not None and mount_of(checkpoint) not in self.disks else []
        return unread + ([offload] if written is None or written.write is None else [])


def stale_reasons(profile: Profile, now: Host) -> list[str]:
    """Why a profile does not speak of a host, in words; empty where it does."""
    was = profile.host
    reasons = []
    if (was.name, was.cpu) != (now.name, now.cpu):
        reasons.append(f"measured on {was.name} ({was.cpu}), and this is {now.name} ({now.cpu})")
    if was.cores != now.cores:
        reasons.append(f"measured with {was.cores} cores, now there are {now.cores}")
    if was.gpu != now.gpu:
        reasons.append(f"measured with {was.gpu or 'no gpu'}, now there is {now.gpu or 'none'}")
    for package, installed in versions().items():
        if (then := profile.versions.get(package)) != installed:
            reasons.append(f"measured with {package} {then or 'unknown'}, now {installed} is installed")
    return reasons


def versions() -> dict[str, str]:
    """Of the packages whose kernels are measured, as installed, and of the kernels here."""
    found = {"penstock's kernels": _KERNELS}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a source tree on the path
            found[package] = "unknown"
    return found


def now_utc() -> datetime:
    """This moment, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def gpu_name() -> str | None:
    """The name of the gpu that would compute; None without one. Imports torch."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model(root: str | Path = "/") -> str:
    """The processor's name as the system gives it; ``root`` is where ``/proc`` is found."""
    path = Path(root, "proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [
        value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == "model name"
    ]
    return names[0] if names else platform.processor() or platform.machine()
