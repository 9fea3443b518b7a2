from itertools import pairwise
from pathlib import Path

import pytest

from penstock.errors import UserError
from penstock.machine import presets
from penstock.machine.machine import Machine
from penstock.machine.presets import PRESETS, machine_of, preset

FILES = Path(presets.__file__).with_name("preset_files")


def numbers(machine: Machine) -> list[str]:
    """Dotted names of all numbers that a preset states."""
    names = [f"memory.{tier}" for tier in machine.memory] + [f"links.{link}" for link in machine.links]
    names += [name for name in ("compute_loses", "disk_loses") if getattr(machine, name)]
    for tier, processor in machine.processors.items():
        names += [f"processors.{tier}.products.{arithmetic}" for arithmetic in processor.products]
        rates = ("attention", "kv_bytes_per_s", "activation_bytes_per_s", "dequantise_per_s")
        times = ("visit_s", "sweep_s", "row_s", "logit_s", "expert_s")
        names += [f"processors.{tier}.{name}" for name in (*rates, *times) if getattr(processor, name)]
    return names


def test_the_files_are_those_that_are_named() -> None:
    assert {path.name for path in FILES.iterdir()} == {f"{name}.toml" for name in PRESETS}


@pytest.mark.parametrize("name", PRESETS)
def test_every_number_of_a_preset_has_a_source_and_every_source_a_number(name: str) -> None:
    machine = preset(name)
    assert set(machine.source) == set(numbers(machine))
    assert all(len(source) > 10 for source in machine.source.values())


@pytest.mark.parametrize("name", PRESETS)
def test_rates_are_of_the_size_that_hardware_has(name: str) -> None:
    """A slip of a prefix shows: nearer to the gpu, rates are higher and memory is smaller."""
    machine = preset(name)
    if machine.compute == "gpu":
        gpu, cpu = machine.processors["gpu"], machine.processors["cpu"]
        assert machine.memory["gpu"] < machine.memory["cpu"] < machine.memory["disk"]
        assert gpu.kv_bytes_per_s > machine.links["cpu→gpu"].bytes_per_s > machine.links["disk→cpu"].bytes_per_s
        assert gpu.products["float16"].at(4096) > 10 * max(curve.at(4096) for curve in cpu.products.values())
    for processor in machine.processors.values():
        for curve in processor.products.values():
            rates = [rate for _, rate in curve.points]
            assert all(later > 0.97 * before for before, later in pairwise(rates))


def test_a_product_of_few_rows_is_held_by_memory_on_gpus() -> None:
    """At one row a weight of two bytes takes part in two FLOP, so FLOP/s are at most bytes per second."""
    for name in ("t4-flexgen", "rtx4090", "a100-80", "h100", "h200", "gh200"):
        gpu = preset(name).processors["gpu"]
        assert gpu.products["float16"].at(1) == pytest.approx(gpu.kv_bytes_per_s, rel=0.01)


def test_an_unknown_name_lists_the_presets() -> None:
    for ask in (preset, machine_of):
        with pytest.raises(UserError, match=r"'rtx5090'.*t4-flexgen, rtx4090, a100-80, h100, h200, gh200, m-class"):
            ask("rtx5090")
    with pytest.raises(UserError, match="neither a file nor a preset"):
        machine_of("x" * 5000)


def test_a_machine_is_named_by_a_preset_or_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes((FILES / "m-class.toml").read_bytes())
    assert machine_of("m-class") == preset("m-class")
    assert machine_of(str(path)) == preset("m-class")
