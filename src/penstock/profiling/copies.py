"""Copies within host memory, and between host and device in both directions."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from penstock.machine.machine import Link
from penstock.memory.buffers import aligned_buffer
from penstock.memory.device import Device
from penstock.profiling.fits import fit_line
from penstock.profiling.timing import median_s

SIZES = (64 << 10, 1 << 20, 16 << 20, 64 << 20)
_HOST_BYTES = 128 << 20
_FRESH_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class DeviceLinks:
    """Host to device and back, from page-locked memory as pages and parked activations are; pageable for comparison."""

    up: Link
    down: Link
    pageable_up: Link
    pageable_down: Link


def host_copy_rate(budget_s: float, nbytes: int = _HOST_BYTES) -> float:
    """Bytes per second that are copied from one place in host memory to another."""
    source, target = aligned_buffer(nbytes, huge=True).fill_(1), aligned_buffer(nbytes, huge=True)
    return nbytes / median_s(lambda: target.copy_(source), budget_s)


def fresh_rate(device: Device, nbytes: int = _FRESH_BYTES) -> float:
    """Bytes per second that are written to memory which the system has to give first; infinite where it gives it at
    once, as a gpu's. To be measured before this process has given any back."""
    if device.compute_tier != "cpu":
        return math.inf
    memory, start = device.alloc(nbytes), time.perf_counter()
    memory.zero_()
    return nbytes / (time.perf_counter() - start)


def measure_device_links(device: Device, budget_s: float, sizes: Sequence[int] = SIZES) -> DeviceLinks:
    """Each direction alone, by the device's own uploads and downloads, at several sizes."""
    fast = device.alloc(max(sizes))
    pinned, pageable = device.host_alloc(max(sizes)), aligned_buffer(max(sizes))
    for memory in (pinned, pageable):
        memory.fill_(1)

    def link(host: torch.Tensor, up: bool) -> Link:
        def copy(nbytes: int) -> Callable[[], None]:
            ends = (host[:nbytes], fast[:nbytes]) if up else (fast[:nbytes], host[:nbytes])
            start = device.upload if up else device.download
            return lambda: start(*ends).finish()

        return link_of(sizes, [median_s(copy(nbytes), budget_s / (4 * len(sizes))) for nbytes in sizes])

    return DeviceLinks(link(pinned, True), link(pinned, False), link(pageable, True), link(pageable, False))


def link_of(sizes: Sequence[int], seconds: Sequence[float]) -> Link:
    """The rate and latency that explain copies of these sizes, in bytes; ValueError where they all take the same."""
    line = fit_line(sizes, seconds)
    if not line.each_s:
        raise ValueError(f"copies of {min(sizes)} and {max(sizes)} bytes took the same time")
    return Link(1 / line.each_s, line.fixed_s)
