import time

import pytest
import torch

from penstock.errors import UserError
from penstock.memory.device import CpuDevice, CudaDevice, EmulatedGpu, open_device

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_devices_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert isinstance(open_device("auto"), CpuDevice)
    assert open_device("cpu").compute_tier == "cpu"
    emulated = open_device("emulated")
    assert emulated.compute_tier == "gpu" and emulated.torch_device.type == "cpu"
    emulated.close()
    with pytest.raises(UserError, match="finds no CUDA device"):
        open_device("cuda")
    with pytest.raises(UserError, match="--device tpu"):
        open_device("tpu")


def test_emulated_copies_take_their_time_and_show_early_reads():
    device = EmulatedGpu(bandwidth_bytes_s=1e6)
    source = torch.arange(200, dtype=torch.uint8).repeat(500)
    target = device.alloc(source.numel())
    start = time.perf_counter()
    ticket = device.upload(source, target)
    assert bool((target == 255).all())
    ticket.wait()
    assert time.perf_counter() - start >= 0.1
    assert torch.equal(source, target)
    assert device.allocated_bytes == 100_000
    back = device.host_alloc(source.numel())
    device.download(target, back).finish()
    assert torch.equal(source, back)
    device.mark().wait_on_copy()
    device.close()


def test_cpu_copies():
    device = CpuDevice()
    target = device.alloc(8)
    device.upload(torch.arange(8, dtype=torch.uint8), target).wait()
    assert target.tolist() == list(range(8))


@pytest.mark.gpu
@needs_cuda
def test_cuda_copies_are_ordered_against_compute():
    device = CudaDevice()
    source = device.host_alloc(64 << 20)
    assert source.is_pinned()
    target = device.alloc(64 << 20)
    total = torch.zeros((), dtype=torch.int64, device=device.torch_device)
    for value in range(20):  # each upload must wait for the sum before it, each sum for its upload
        source.fill_(value)
        ticket = device.upload(source, target)
        ticket.wait()
        total += target.sum(dtype=torch.int64)
        device.mark().wait_on_copy()
        ticket.finish()
    assert total.item() == sum(range(20)) * (64 << 20)
    back = device.host_alloc(64 << 20)
    target.fill_(7)
    device.download(target, back).finish()
    assert bool((back == 7).all())
