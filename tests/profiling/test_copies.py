import math

import pytest

from penstock.memory.device import CpuDevice, CudaDevice, EmulatedGpu
from penstock.profiling.copies import fresh_rate, host_copy_rate, link_of, measure_device_links


def test_rate_and_latency_of_copies() -> None:
    link = link_of([1000, 100_000], [0.001 + 1e-6, 0.001 + 1e-4])
    assert link.bytes_per_s == pytest.approx(1e9)
    assert link.latency_s == pytest.approx(0.001)


def test_copies_that_take_no_longer_when_larger() -> None:
    with pytest.raises(ValueError, match="same time"):
        link_of([1000, 2000], [0.002, 0.001])


def test_links_of_a_device_of_known_speed() -> None:
    device = EmulatedGpu(bandwidth_bytes_s=2e8)
    try:
        links = measure_device_links(device, 0.2, (1 << 20, 8 << 20))
    finally:
        device.close()
    for link in (links.up, links.down, links.pageable_up, links.pageable_down):
        assert 6e7 < link.bytes_per_s < 6e8


@pytest.mark.gpu
def test_links_of_a_cuda_device() -> None:
    links = measure_device_links(CudaDevice(), 0.4)
    assert 1e8 < links.up.bytes_per_s < 1e12
    assert 1e8 < links.down.bytes_per_s < 1e12


def test_host_copy() -> None:
    assert 1e6 < host_copy_rate(0.01, 1 << 20) < 1e13


def test_new_memory_costs_where_the_cpu_computes() -> None:
    assert 1e6 < fresh_rate(CpuDevice(), 4 << 20) < 1e12
    device = EmulatedGpu(bandwidth_bytes_s=2e8)
    try:
        assert math.isinf(fresh_rate(device, 1 << 20))
    finally:
        device.close()
