import re
from pathlib import Path

import pytest

from penstock.errors import UserError
from penstock.plan.instance import Instance, solve_instance
from penstock.plan.instance_file import read_instance

EXAMPLE = Path(__file__).parents[2] / "examples" / "three-layers.toml"
GB, GIB, MB = 10**9, 2**30, 10**6

SMALL = """
layers = 2
compute_s = "1ms"

[memory]
gpu = "20MB"
cpu = "30MB"
disk = "unlimited"

[links]
"cpu->gpu" = "10GB/s"
"disk->cpu" = "1GB/s"

[sizes]
weights = "16MB"
kv = "10MB"
activations = "4MB"

[[answers]]
weights = { gpu = 50, cpu = 50 }
kv = "disk"
activations = "cpu=50%,disk=50%"
"""


def read(tmp_path: Path, text: str = SMALL) -> Instance:
    path = tmp_path / "small.toml"
    path.write_text(text)
    return read_instance(path)


def test_the_example_fits_the_gpu() -> None:
    solved = solve_instance(read_instance(EXAMPLE))
    assert solved.optimum.seconds == 0.0
    everything_on_gpu = {"gpu": 1.0, "cpu": 0.0, "disk": 0.0}
    assert solved.optimum.shares == dict.fromkeys(("weights", "kv", "activations"), everything_on_gpu)


def test_the_price_of_the_example_s_answer() -> None:
    solved = solve_instance(read_instance(EXAMPLE))
    printed = solved.answers["as printed"]
    assert solved.instance.answers["as printed"]["activations"] == {"gpu": 0.4, "cpu": 0.5, "disk": 0.1}
    assert printed.lanes["disk→cpu"] == pytest.approx((1.6 + 0.8 + 0.2) * MB / GB)
    assert printed.lanes["cpu→gpu"] == pytest.approx((3.2 + 4.0 + 0.6) * MB / (10 * GB))
    assert printed.seconds == pytest.approx(2.6e-3)
    assert printed.short == {}
    assert solved.ratio("as printed") is None


def test_the_example_s_sizes_do_not_follow_from_its_dimensions() -> None:
    instance = read_instance(EXAMPLE)
    assert instance.sizes == {"weights": 16 * MB, "kv": 2 * MB, "activations": 8 * MB}
    assert [re.findall(r"[\d.]+ [kM]B", note) for note in instance.notes] == [
        ["16 MB", "25.2 MB"],
        ["2 MB", "9.4 MB"],
        ["8 MB", "8.2 kB"],
    ]


def test_sizes_from_dimensions_alone(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    start, end = text.index("[sizes]"), text.index("[dimensions]")
    instance = read(tmp_path, text[:start] + text[end:])
    assert instance.sizes == {
        "weights": 8 * 1024**2 + 4 * 1024 * 4096,
        "kv": 4 * 4 * (512 + 64) * 1024,
        "activations": 2 * 4 * 1024,
    }
    assert instance.notes == ()
    rounded = text.replace('"16MB"', '"25.2MB"').replace('"2MB"', '"9.4MB"').replace('"8MB"', '"8.2kB"')
    assert read(tmp_path, rounded).notes == ()


def test_an_optimum_by_hand(tmp_path: Path) -> None:
    # 60 MB in two layers: 20 on the gpu, 30 on the cpu, 10 on disk. A layer reads 5 MB from disk and 20 over cpu→gpu.
    solved = solve_instance(read(tmp_path))
    assert solved.instance.name == "small"
    assert solved.optimum.lanes == pytest.approx({"cpu→gpu": 2e-3, "disk→cpu": 5e-3, "compute": 1e-3})
    # of one layer: a byte of memory serves both layers, half a byte each
    assert solved.optimum.byte_duals == pytest.approx({"gpu": 0.5e-9, "cpu": 0.5e-9})
    # 10 + 2 MB of a layer come from disk; what rests there crosses to the gpu as well
    answer = solved.answers["answer 1"]
    assert answer.lanes == pytest.approx({"cpu→gpu": 2.2e-3, "disk→cpu": 12e-3, "compute": 1e-3})
    assert solved.ratio("answer 1") == pytest.approx(12 / 5)


def test_bytes_on_disk_may_stay_off_the_other_link(tmp_path: Path) -> None:
    answer = solve_instance(read(tmp_path, "disk_through_cpu = false\n" + SMALL)).answers["answer 1"]
    assert answer.lanes["cpu→gpu"] == pytest.approx(1e-3)


def test_an_answer_that_does_not_fit(tmp_path: Path) -> None:
    solved = solve_instance(read(tmp_path, SMALL.replace('gpu = "20MB"', 'gpu = "10MB"')))
    assert solved.answers["answer 1"].short == {"gpu": 6 * MB}


@pytest.mark.parametrize(
    ("written", "nbytes"),
    [
        ('"4GB"', 4 * GB),
        ('"4GiB"', 4 * GIB),
        ('"4096MiB"', 4 * GIB),
        ('"1.5 GB"', 15 * GB // 10),
        ("1000", 1000),
        ("0", 0),
        ('"unlimited"', None),
    ],
)
def test_units_mean_what_they_say(tmp_path: Path, written: str, nbytes: int | None) -> None:
    assert read(tmp_path, SMALL.replace('cpu = "30MB"', f"cpu = {written}")).memory["cpu"] == nbytes


def test_a_gibibyte_holds_more_than_a_gigabyte(tmp_path: Path) -> None:
    large = SMALL.replace('"16MB"', '"600MB"')
    seconds = [
        solve_instance(read(tmp_path, large.replace('"20MB"', size))).optimum.seconds for size in ('"1GB"', '"1GiB"')
    ]
    assert seconds[0] - seconds[1] == pytest.approx((GIB - GB) / 2 / GB)
    rates = [read(tmp_path, SMALL.replace('"1GB/s"', rate)).links["disk→cpu"] for rate in ('"1GB/s"', '"1GiB/s"')]
    assert rates == [GB, GIB]


def test_two_tiers(tmp_path: Path) -> None:
    text = SMALL.replace('gpu = "20MB"\n', "").replace('"cpu->gpu" = "10GB/s"\n', "")
    text = text.replace("{ gpu = 50, cpu = 50 }", '"cpu"')
    solved = solve_instance(read(tmp_path, text))
    assert solved.instance.tiers == ("cpu", "disk")
    assert solved.optimum.lanes == pytest.approx({"disk→cpu": 15e-3, "compute": 1e-3})


def test_nothing_fits(tmp_path: Path) -> None:
    text = SMALL.replace('disk = "unlimited"', 'disk = "5MB"')
    with pytest.raises(
        UserError, match=r"no placement fits .*60,000,000 bytes.*memory.disk is 5,000,000 bytes too small"
    ):
        solve_instance(read(tmp_path, text))
    enough = SMALL.replace('disk = "unlimited"', 'disk = "10MB"')
    assert solve_instance(read(tmp_path, enough)).optimum.seconds == pytest.approx(5e-3)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("layers = 2", "layers = ", "not TOML: Invalid value (at line 2, column 10)"),
        ("layers = 2", "layers = 0", "layers is 0: give a whole number greater than zero"),
        ("layers = 2", "layers = 2.5", "layers is 2.5: give a whole number"),
        ("layers = 2", "layer = 2", "layer is not known: give name, layers, disk_through_cpu, compute_s, memory"),
        ("layers = 2", "disk_through_cpu = 1", "disk_through_cpu is 1: give true or false"),
        ("layers = 2", 'name = "a\\nb"', "name is 'a\\nb': give text in one line"),
        ('compute_s = "1ms"', 'compute_s = "-1ms"', "compute_s is '-1ms': give zero or more seconds"),
        ('cpu = "30MB"', 'cpu = "30 potatoes"', "memory.cpu is '30 potatoes': give a positive size such as"),
        ('cpu = "30MB"', "cpu = -1", "memory.cpu is -1: give a positive size"),
        ('cpu = "30MB"', "cpu = true", "memory.cpu is True: give a positive size"),
        ('cpu = "30MB"', 'ram = "30MB"', "memory.ram is not known: give 'gpu', 'cpu' or 'disk'"),
        ('cpu = "30MB"', "", "memory.cpu is missing"),
        ("[memory]", "[memories]", "memory is missing: give name, layers"),
        ('"10GB/s"', '"0GB/s"', "links.cpu→gpu is '0GB/s': give bytes per second greater than zero"),
        ('"10GB/s"', "-5", "links.cpu→gpu is -5: give bytes per second"),
        ('"10GB/s"', "inf", "links.cpu→gpu is inf: give bytes per second"),
        ('"cpu->gpu" = "10GB/s"', "", 'links.cpu→gpu is missing: memory.gpu needs it; give it, such as "10GB/s"'),
        ('gpu = "20MB"', "", "links.cpu→gpu is given without memory.gpu: give both or neither"),
        ('"cpu->gpu"', '"gpu->cpu"', "links.gpu→cpu is not known: give 'cpu→gpu' or 'disk→cpu'"),
        ('kv = "10MB"', "", 'sizes.kv is missing: give it, such as "16MB", or [dimensions]'),
        ('kv = "10MB"', 'kv = ["10MB"]', "sizes.kv is ['10MB']: give a positive size"),
        ('kv = "10MB"', 'cache = "10MB"', "sizes.cache is not known: give weights, kv, activations"),
        ("[sizes]", "[dimensions]\nhidden = 1024\n[sizes]", "dimensions.ffn is missing: give hidden, ffn, batch"),
        ('kv = "disk"', 'kv = "disk=90%"', "answers.1.kv 'disk=90%' sums to 90 %: the shares of all tiers must sum to"),
        ('kv = "disk"', 'kv = "tape"', "answers.1.kv 'tape' names 'tape': the tiers are gpu, cpu, disk"),
        ('kv = "disk"', "kv = 3", "answers.1.kv is 3: give shares such as"),
        ('kv = "disk"', "", "answers.1.kv is missing: give name, weights, kv, activations"),
        ("[[answers]]", '[[answers]]\nname = "optimum"', "answers.1.name is 'optimum', which is taken"),
        ("[[answers]]", "[answers]", "answers is {"),
    ],
)
def test_mistakes_are_refused_in_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in SMALL
    with pytest.raises(UserError, match=rf"small\.toml: {re.escape(said)}") as caught:
        read(tmp_path, SMALL.replace(old, new, 1))
    assert str(caught.value).isprintable()


def test_a_share_of_a_tier_that_is_not_there(tmp_path: Path) -> None:
    text = SMALL.replace('disk = "unlimited"\n', "").replace('"disk->cpu" = "1GB/s"\n', "")
    with pytest.raises(UserError, match=r"answers\.1\.kv puts 100 % on disk: memory has gpu, cpu"):
        read(tmp_path, text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.toml: cannot be read \(No such file"):
        read_instance(tmp_path / "none.toml")
    with pytest.raises(UserError, match="cannot be read"):
        read_instance(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"bytes\.toml: not TOML"):
        read_instance(tmp_path / "bytes.toml")
