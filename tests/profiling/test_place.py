from dataclasses import replace

import pytest
import torch

from penstock.memory.device import CpuDevice, EmulatedGpu
from penstock.profiling import place as profiled
from penstock.profiling.place import Place
from penstock.quant.grouped import Grouped


def test_arithmetics_that_a_cpu_without_bf16_runs(place: Place) -> None:
    assert [kind.name for kind in place.arithmetics(short=True)] == ["float32<bfloat16", "float32<float16", "float32"]
    assert {"bfloat16", "float32<int4", "float32<int8"} <= {kind.name for kind in place.arithmetics()}


def test_arithmetics_that_a_cpu_with_bf16_runs(place: Place) -> None:
    place = replace(place, cpu_bfloat16=True)
    assert [kind.name for kind in place.arithmetics(short=True)] == ["bfloat16"]
    names = {kind.name for kind in place.arithmetics()}
    assert {"float32", "float32<bfloat16", "bfloat16<int4", "bfloat16<int8"} <= names


def test_packed_weights_are_measured_on_a_gpu_where_kernels_unpack_them(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = EmulatedGpu()
    beside = replace(place, device=device)
    assert not {"float32<int4", "float32<int8"} & {kind.name for kind in beside.arithmetics()}
    asked = []
    monkeypatch.setattr(profiled, "works", lambda *what: asked.append(what) or what[0] == Grouped(4))
    assert "float32<int4" in {kind.name for kind in beside.arithmetics()}
    assert "float32<int8" not in {kind.name for kind in beside.arithmetics()}
    assert asked[:2] == [(Grouped(bits), torch.float32, device.torch_device) for bits in (4, 8)]
    device.close()


def test_copies_exceed_the_cache_within_the_room(place: Place) -> None:
    assert place.copies(1 << 12) * (1 << 12) >= 3 * place.cache_bytes
    assert place.copies(place.cache_bytes * 8) == 1
    assert replace(place, cache_bytes=1 << 30).copies(1 << 24) == 4


def test_noise_fills_everything_with_ordinary_numbers(place: Place) -> None:
    noise = place.noise((1 << 20) + 9000, torch.bfloat16)
    assert noise.abs().max() <= 1
    assert (noise[-4000:] == 0).float().mean() < 0.01


def test_this_cpu() -> None:
    place = Place.of(CpuDevice(), room_bytes=1 << 20)
    assert place.cache_bytes >= 1 << 18
    assert place.room_bytes == 1 << 20
