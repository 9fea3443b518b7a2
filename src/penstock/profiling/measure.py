"""Measuring a host within a given time: every part in turn, joined to a Machine and a Profile."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch

from penstock.errors import UserError
from penstock.machine.limits import free_disk_bytes, memory_limit_bytes
from penstock.machine.machine import Link, LinkName, Machine, Processor
from penstock.memory.allocator import keep_little
from penstock.memory.device import CpuDevice, Device, open_device
from penstock.memory.offload import offload_root
from penstock.model.pages import Extent
from penstock.plan.policy import Tier
from penstock.profiling import attention, copies, overheads, products, scratch, traffic, unpacking
from penstock.profiling.disk import mount_of
from penstock.profiling.disks import measured_disks
from penstock.profiling.place import Place
from penstock.profiling.profile import Host, Profile, gpu_name, now_utc, versions
from penstock.profiling.together import measure_together
from penstock.units import format_bytes

Progress = Callable[[str, float, float], None]

# What each part takes of the time; the rest is for what no clock is held against: making models, matrices and files.
_PRODUCTS, _STARTS, _ATTENTION, _TRAFFIC, _UNPACKING, _OVERHEADS = 0.23, 0.02, 0.1, 0.02, 0.01, 0.08
_DISKS, _TOGETHER, _COPIES = 0.14, 0.18, 0.02
_ALL = _PRODUCTS + _STARTS + _ATTENTION + _TRAFFIC + _UNPACKING + _OVERHEADS + _DISKS + _TOGETHER + 2 * _COPIES
_COMPILING = 1 / 3  # of the time, at most: what kernels take beyond that, once after an installation, comes on top
_LEAST_ROOM: Mapping[Tier, int] = MappingProxyType({"gpu": 256 << 20, "cpu": 256 << 20, "disk": 128 << 20})


@dataclass(frozen=True, slots=True)
class Form:
    """How much is measured, and in what time.

    budget_s: for all of it, with compiling kernels as far as that takes a third. auto_only: no arithmetics but those
    that ``--dtype auto`` chooses here. tokens, width: of products. keys: of a row in decode. spans: query tokens of
    prefill. layers: of the tiny models that overheads are measured with. file_bytes, kv_bytes: written to a disk at
    most. copied_bytes: of host memory, in one copy.
    """

    name: str
    budget_s: float
    auto_only: bool
    tokens: Sequence[int]
    width: int = products.WIDTH
    keys: Sequence[int] = attention.DECODE_KEYS
    spans: Sequence[int] = attention.SPANS
    layers: Sequence[int] = overheads.LAYERS
    file_bytes: int = scratch.FILE_BYTES
    kv_bytes: int = 256 << 20
    copied_bytes: int = 128 << 20

    def within(self, room: Mapping[Tier, int]) -> "Form":
        """The form with no more written and copied than a part of so many bytes of each tier.

        Raises UserError where that is too little to measure in.
        """
        for tier, least in _LEAST_ROOM.items():
            if room.get(tier, least) < least:
                raise UserError(
                    f"measuring this host takes {format_bytes(least)} of {tier}, and the budget leaves"
                    f" {format_bytes(max(0, room[tier]))}: run penstock profile first, which has none, or give more"
                )
        cpu, disk = room.get("cpu", 4 * self.copied_bytes), room.get("disk", 4 * self.file_bytes)
        return replace(
            self,
            copied_bytes=min(self.copied_bytes, cpu // 4),
            file_bytes=min(self.file_bytes, disk // 2),
            kv_bytes=min(self.kv_bytes, disk // 4),
        )


LONG = Form("long", 60.0, False, products.LONG_TOKENS)
SHORT = Form("short", 15.0, True, products.SHORT_TOKENS, file_bytes=1 << 30, kv_bytes=96 << 20)


def measure_machine(
    checkpoint: Sequence[Extent] | None,
    offload_dir: Path,
    budget_s: float = LONG.budget_s,
    short: bool = False,
    progress: Progress = lambda what, done_s, total_s: None,
) -> Machine:
    """This host as a machine: ``measure_profile`` without what only a stored profile needs."""
    form = replace(SHORT, budget_s=min(budget_s, SHORT.budget_s)) if short else replace(LONG, budget_s=budget_s)
    return measure_profile(checkpoint, offload_dir, form, progress).machine


def measure_profile(
    checkpoint: Sequence[Extent] | None,
    offload_dir: Path,
    form: Form = LONG,
    progress: Progress = lambda what, done_s, total_s: None,
    rooms: Mapping[Tier, int] | None = None,
) -> Profile:
    """Measure this host, its gpu where there is one, and the disks of a checkpoint, page cache and ``offload_dir``.

    checkpoint: where weights are read from; None: from a file that is written to ``offload_dir`` for it and removed.
    progress: called with what is measured next, the seconds of it all that are done, and all. rooms: bytes of cpu and
    gpu memory that matrices and KV may take, by default a quarter of what is free. What takes longer than it should
    shortens what comes after it. Raises UserError where a disk cannot be measured.
    """
    keep_little()
    started, extra, rooms = time.perf_counter(), dict[str, float](), rooms or {}
    with ExitStack() as opened:
        cpu, device = Place.of(CpuDevice(), rooms.get("cpu")), open_device("auto")
        opened.callback(device.close)
        places = [cpu, Place.of(device, rooms.get("gpu"))] if device.compute_tier == "gpu" else [cpu]
        fresh = {p.device.compute_tier: copies.fresh_rate(p.device, form.copied_bytes) for p in places}
        progress("compiling kernels", 0.0, form.budget_s)
        for place in places:
            _warm_up(place, form)
        steps = _Steps(form.budget_s, progress, time.perf_counter() - started)
        processors = {p.device.compute_tier: _processor(p, form, steps, fresh) for p in places}
        extra["host_copy_bytes_per_s"] = copies.host_copy_rate(steps.begin("host copy", _COPIES), form.copied_bytes)
        links = _device_links(device, steps, extra)
        budget_s = steps.begin("disks", _DISKS)
        sizes = (budget_s, form.file_bytes, form.kv_bytes)
        disks = opened.enter_context(measured_disks(checkpoint, offload_dir, offload_root(None), *sizes, steps.say))
        together = measure_together(cpu, disks.extents, steps.begin("compute and disk together", _TOGETHER))
    steps.say("")
    host, when = Host.here(gpu_name()), now_utc()
    memory: dict[Tier, int] = {"cpu": memory_limit_bytes(), "disk": free_disk_bytes(offload_dir)}
    if device.compute_tier == "gpu":
        memory["gpu"] = torch.cuda.mem_get_info(device.torch_device)[1]
    mount = mount_of(Path(disks.extents[0].path))
    disks.by_mount[mount] = replace(disks.by_mount[mount], read=together.read)  # which took longer
    links["disk→cpu"] = together.read
    if (write := disks.by_mount[mount_of(offload_dir)].write) is not None:
        links["cpu→disk"] = write
    said = f"measured on {host.name}, {when:%Y-%m-%d} ({form.name} form)"
    source = dict.fromkeys(("processors", "links", "compute_loses", "disk_loses"), said)
    machine = Machine(host.name, memory, links, processors, together.compute_loses, together.disk_loses, source)
    return Profile(host, when, form.name, time.perf_counter() - started, versions(), machine, disks.by_mount, extra)


def with_disks(
    profile: Profile, checkpoint: Sequence[Extent] | None, offload_dir: Path, form: Form, progress: Progress
) -> Profile:
    """The profile with the file systems of a checkpoint and an offload directory measured too, and nothing else."""
    steps = _Steps(form.budget_s, progress, shares=_DISKS)
    sizes = (steps.begin("disks", _DISKS), form.file_bytes, form.kv_bytes)
    with measured_disks(checkpoint, offload_dir, offload_root(None), *sizes, steps.say) as disks:
        return replace(profile, disks={**profile.disks, **disks.by_mount})


class _Steps:
    """Tells what is measured next, and gives each step its part of the time; less where earlier ones took longer."""

    def __init__(self, budget_s: float, progress: Progress, compiling_s: float = 0.0, shares: float = _ALL) -> None:
        self._budget_s, self._progress, self._shares = budget_s, progress, shares
        self._given = self._begun = 0.0
        self._started = time.perf_counter() - min(compiling_s, _COMPILING * budget_s)

    def begin(self, what: str, share: float) -> float:
        """Seconds that a step may take."""
        left_s = max(0.0, self._budget_s - (time.perf_counter() - self._started))
        seconds = min(share * self._budget_s, share / max(share, self._shares - self._given) * left_s)
        self._begun = self._given
        self._given += share
        self.say(what)
        return seconds

    def say(self, what: str) -> None:
        """Tell what comes next within the step that was begun; nothing: all is done."""
        total_s = self._budget_s * self._shares / _ALL
        self._progress(what, total_s * min(1.0, self._begun / self._shares) if what else total_s, total_s)


def _warm_up(place: Place, form: Form) -> None:
    """Run everything once in small: kernels are compiled, which takes seconds once and is no matter of speed."""
    # narrower matrices take no kernel; one token and a few have kernels of their own where weights are packed
    for tokens in (1, 4, 16):
        products.measure_products(place, place.arithmetics(form.auto_only), (tokens,), 0.0, 512)
    attention.measure_attention(place, 0.0, rows=2, keys=(4, 8), spans=(4,))
    traffic.measure_traffic(place, 0.0, tokens=4, hidden=64, ffn=64)
    unpacking.measure_unpacking(place, 0.0, elements=1 << 14)


def _processor(place: Place, form: Form, steps: _Steps, fresh: Mapping[Tier, float]) -> Processor:
    """What one place computes; the time is shared among all. fresh: bytes per second of new memory, of each."""

    def budget_s(what: str, share: float) -> float:
        return steps.begin(f"{place.device.compute_tier}: {what}", share / len(fresh))

    kinds = place.arithmetics(form.auto_only)
    curves = products.measure_products(place, kinds, form.tokens, budget_s("products", _PRODUCTS), form.width)
    rates = attention.measure_attention(place, budget_s("attention", _ATTENTION), keys=form.keys, spans=form.spans)
    between = traffic.measure_traffic(place, budget_s("between products", _TRAFFIC))
    unpacked = unpacking.measure_unpacking(place, budget_s("unpacking", _UNPACKING))
    starts = products.measure_starts(place, kinds, curves, budget_s("small products", _STARTS))
    auto = kinds[0].name  # what `auto` makes of a bfloat16 checkpoint comes first
    costs = overheads.measure_overheads(
        place, budget_s("overheads", _OVERHEADS), curves[auto], starts[auto], form.layers
    )
    return Processor(
        products=curves,
        attention=rates.flops,
        kv_bytes_per_s=rates.kv_bytes_per_s,
        activation_bytes_per_s=between,
        dequantise_per_s=unpacked,
        visit_s=costs.visit_s,
        sweep_s=costs.sweep_s,
        row_s=costs.row_s,
        logit_s=costs.logit_s,
        expert_s=costs.expert_s,
        product_s=starts,
        attention_row_s=rates.row_s,
        fresh_bytes_per_s=fresh[place.device.compute_tier],
    )


def _device_links(device: Device, steps: _Steps, extra: dict[str, float]) -> dict[LinkName, Link]:
    """Links between host and gpu; none without one."""
    if device.compute_tier != "gpu":
        return {}
    found = copies.measure_device_links(device, steps.begin("host and gpu", _COPIES))
    extra["cpu→gpu_pageable_bytes_per_s"] = found.pageable_up.bytes_per_s
    extra["gpu→cpu_pageable_bytes_per_s"] = found.pageable_down.bytes_per_s
    return {"cpu→gpu": found.up, "gpu→cpu": found.down}
