import math
from pathlib import Path

import pytest

from penstock.errors import UserError
from penstock.machine.machine import Curve, Link
from penstock.machine.machine_file import load_machine

GOOD = """
[memory]
gpu = "16GB"
cpu = "208GiB"
disk = 1500000000000

[links]
"disk→cpu" = { bytes_per_s = "2GB/s", latency_s = "80us", kv_bytes_per_s = "700MB/s", jitter = 0.25 }
"cpu→disk" = "1GB/s"
"cpu->gpu" = 12.9e9
source."cpu->gpu" = "bandwidthTest"
"gpu→cpu" = "512 MiB/s"

[processors.gpu]
attention = [[1, "0.08TFLOP/s"], [512, "10 TFLOPS"]]
kv_bytes_per_s = "320GB/s"
activation_bytes_per_s = "250GB/s"
dequantise_per_s = "20G/s"
visit_s = 1e-4
[processors.gpu.products]
float16 = [[1, "320GFLOP/s"], [64.5, 4.3e12]]

[processors.cpu]
attention = "12GFLOP/s"
kv_bytes_per_s = 50000000000
activation_bytes_per_s = "20GB/s"
[processors.cpu.products]
"float32<float16" = "1TFLOP/s"
"""


def wrong(tmp_path: Path, text: str) -> str:
    """The one line that a file is refused with."""
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_machine(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and "\n" not in said
    return said.removeprefix(f"{path}: ")


def test_a_file_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    machine = load_machine(path)
    assert machine.name == "mine"
    assert machine.memory == {"gpu": 16 * 10**9, "cpu": 208 * 2**30, "disk": 1500 * 10**9}
    assert machine.links["disk→cpu"] == Link(2e9, 8e-5, kv_bytes_per_s=7e8, jitter=0.25)
    assert machine.links["cpu→gpu"] == Link(12.9e9)
    assert machine.links["gpu→cpu"] == Link(512 * 2**20)
    assert machine.source == {"links.cpu→gpu": "bandwidthTest"}
    gpu = machine.processors["gpu"]
    assert gpu.products == {"float16": Curve(((1.0, 3.2e11), (64.5, 4.3e12)))}
    assert gpu.attention == Curve(((1.0, 8e10), (512.0, 1e13)))
    assert (gpu.kv_bytes_per_s, gpu.dequantise_per_s, gpu.visit_s, gpu.sweep_s) == (3.2e11, 2e10, 1e-4, 0.0)
    assert machine.processors["cpu"].attention == Curve.flat(1.2e10)
    assert machine.processors["cpu"].dequantise_per_s == math.inf
    assert machine.compute == "gpu"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('gpu = "16GB"', 'gpu = "0GB"', "memory.gpu is '0GB': give a positive size"),
        ('gpu = "16GB"', "gpu = 16e9", "memory.gpu is 16000000000.0: give a positive size"),
        ('gpu = "16GB"', f"gpu = {10**30}", "memory.gpu is 1000"),
        ('gpu = "16GB"', 'vram = "16GB"', "memory.vram is not known: give 'gpu', 'cpu' or 'disk'"),
        ('gpu = "16GB"', '"a\\nb" = 1', r"'memory.a\nb' is not known"),
        ('"1GB/s"', '"0GB/s"', "links.cpu→disk is '0GB/s': give bytes per second greater than zero"),
        ('"1GB/s"', '"1GB"', "links.cpu→disk is '1GB': give bytes per second"),
        ('"1GB/s"', "-1.0", "links.cpu→disk is -1.0: give bytes per second"),
        ('"1GB/s"', "1e-320", "links.cpu→disk is 1e-320: give bytes per second"),
        ('"1GB/s"', "nan", "links.cpu→disk is nan: give bytes per second"),
        ('"1GB/s"', "inf", "links.cpu→disk is inf: give bytes per second"),
        ('"1GB/s"', "true", "links.cpu→disk is True: give bytes per second"),
        ('"1GB/s"', "2026-01-01", "links.cpu→disk is datetime.date(2026, 1, 1): give bytes per second"),
        ('"1GB/s"', f"1{'0' * 400}", "links.cpu→disk is 1000"),
        ('"80us"', '"-80us"', "links.disk→cpu.latency_s is '-80us': give zero or more seconds"),
        ("0.25", "1.0", "links.disk→cpu.jitter is 1.0: give a number from 0 to less than 1"),
        ("latency_s", "lag", "links.disk→cpu.lag is not known: give bytes_per_s and, if you like, latency_s"),
        ('bytes_per_s = "2GB/s", ', "", "links.disk→cpu.bytes_per_s is missing: give bytes_per_s"),
        ('"cpu→disk"', '"disk→gpu"', "links.disk→gpu is not known: give 'disk→cpu', 'cpu→gpu', 'gpu→cpu' or"),
        ('"cpu→disk" = "1GB/s"', "", "links.cpu→disk is missing: a machine with memory.disk needs it"),
        ("disk = 1500000000000", "", "links.disk→cpu is given, but there is no disk tier: give memory.disk or leave"),
        ('gpu = "16GB"', "", "links.cpu→gpu is given, but there is no gpu tier"),
        ('cpu = "208GiB"', "", "memory.cpu is missing: every machine has a cpu tier"),
        ("[memory]", "[memory]\n[memory.x]", "memory.x is not known"),
        ('"gpu→cpu" = ', '"cpu→gpu" = ', "links.cpu→gpu is given twice, also as"),
        ("[processors.cpu]", "[processors.tpu]", "processors.tpu is not known: give 'gpu' or 'cpu'"),
        ("visit_s", "visits", "processors.gpu.visits is not known: give products, attention, kv_bytes_per_s"),
        ('kv_bytes_per_s = "320GB/s"', "", "processors.gpu.kv_bytes_per_s is missing"),
        ('float16 = [[1, "320GFLOP/s"], [64.5, 4.3e12]]', "", "processors.gpu.products is {}: give at least one"),
        ("float16 = ", "float8 = ", "processors.gpu.products.float8 is not known: give float16, bfloat16 or float32"),
        (
            '[1, "320GFLOP/s"], [64.5, 4.3e12]',
            "",
            "processors.gpu.products.float16 is []: give at least one [size, rat",
        ),
        (
            "[64.5, 4.3e12]",
            "[1, 4.3e12]",
            "products.float16 is [[1, '320GFLOP/s'], [1, 4300000000000.0]]: point 2 has s",
        ),
        ("[64.5, 4.3e12]", "[64.5]", "point 2 is not [size, rate]"),
        ("[64.5, 4.3e12]", "[64.5, 0]", "rate of point 2: give FLOP per second greater than zero"),
        ('[1, "0.08TFLOP/s"]', '[0, "0.08TFLOP/s"]', "point 1 has no size that is a number greater than zero"),
        ('"20G/s"', '"20GB/s"', "processors.gpu.dequantise_per_s is '20GB/s': give elements per second"),
        ("[memory]", "compute_loses = 1.0\n[memory]", "compute_loses is 1.0: give a number from 0 to less than 1"),
        ("[memory]", "colour = 1\n[memory]", "colour is not known: give memory, processors and, if you like, name"),
        ("[memory]", "name = 3\n[memory]", "name is 3: "),
        ("[memory]", "[[memory]]", "memory is [{'gpu': '16GB', 'cpu': '208GiB', 'disk': 15000"),
        ('"bandwidthTest"', "3", "the source of links.cpu→gpu is 3: give text"),
        ("[memory]", "[memory", "not TOML: "),
        ("[memory]", "x = " + "[" * 5000, "not TOML: "),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    assert said in wrong(tmp_path, GOOD.replace(old, new, 1))


def test_a_processor_needs_its_tier_and_a_tier_its_processor(tmp_path: Path) -> None:
    host = GOOD[GOOD.index("[processors.cpu]") :]
    memory = '[memory]\ncpu = "1GB"\n'
    gpu = GOOD[GOOD.index("[processors.gpu]") : GOOD.index("[processors.cpu]")]
    assert "processors.gpu is given, but there is no gpu tier" in wrong(tmp_path, memory + gpu + host)
    assert "processors.cpu is missing: a machine with memory.cpu needs it" in wrong(tmp_path, memory + "[processors]")
    assert "processors is missing: give memory, processors" in wrong(tmp_path, memory)
    assert "memory is missing" in wrong(tmp_path, "")
    assert "processors.cpu is 3: give a table" in wrong(tmp_path, memory + "[processors]\ncpu = 3")


def test_a_file_that_is_not_text_or_not_there_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"mine\.toml: not TOML: .*see docs/machines\.md"):
        load_machine(path)
    with pytest.raises(UserError, match=r"cannot be read \(No such file or directory\)"):
        load_machine(tmp_path / "absent.toml")
    with pytest.raises(UserError, match="cannot be read"):
        load_machine(tmp_path)


def test_a_source_may_stand_beside_its_number_or_in_a_table_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        GOOD + '\n[source]\n"links.cpu->disk" = "one"\nmemory.gpu = "two"\n[memory.source]\ncpu = "three"\n'
    )
    assert load_machine(path).source == {
        "links.cpu→gpu": "bandwidthTest",
        "links.cpu→disk": "one",
        "memory.gpu": "two",
        "memory.cpu": "three",
    }


def test_the_example_in_the_documentation_can_be_read(tmp_path: Path) -> None:
    page = Path(__file__).parents[2].joinpath("docs", "machines.md").read_text(encoding="utf-8")
    path = tmp_path / "example.toml"
    path.write_text(page.split("```toml\n")[1].split("```")[0], encoding="utf-8")
    machine = load_machine(path)
    assert machine.name == "My workstation"
    assert machine.source == {"links.cpu→gpu": "nvbandwidth, pinned"}
    assert set(machine.links) == {"disk→cpu", "cpu→disk", "cpu→gpu", "gpu→cpu"}
