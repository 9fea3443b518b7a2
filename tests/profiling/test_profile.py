from dataclasses import replace
from pathlib import Path

import pytest
from tests.profiling.profiles import HERE, profile

from penstock.machine.machine import Link
from penstock.profiling.disk import Disk, mount_of
from penstock.profiling.profile import cpu_model, stale_reasons


def test_a_profile_of_this_host_holds() -> None:
    assert stale_reasons(profile(), HERE) == []


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ({"name": "elsewhere"}, "measured on elsewhere"),
        ({"cpu": "i386"}, "i386"),
        ({"cores": 999}, "measured with 999 cores"),
        ({"gpu": "T4"}, "measured with T4, now there is none"),
    ],
)
def test_another_machine_is_noticed(then: dict[str, object], reason: str) -> None:
    (said,) = stale_reasons(profile(host=replace(HERE, **then)), HERE)
    assert reason in said


def test_another_torch_is_noticed() -> None:
    old = replace(profile(), versions={**profile().versions, "torch": "1.0"})
    (said,) = stale_reasons(old, HERE)
    assert said.startswith("measured with torch 1.0, now ")


def test_links_are_those_of_the_file_systems_in_use(tmp_path: Path) -> None:
    here = mount_of(tmp_path)
    slow = Disk(here, Link(1e8), Link(5e7), 1e7, 1e7)
    machine = replace(profile(mount="/elsewhere"), disks={here: slow}).machine_at(tmp_path / "weights", tmp_path)
    assert (machine.links["disk→cpu"], machine.links["cpu→disk"]) == tuple(
        Link(rate, kv_bytes_per_s=1e7) for rate in (1e8, 5e7)
    )
    kept = profile(mount="/elsewhere").machine_at(tmp_path / "weights", tmp_path)
    assert kept.links == profile().machine.links


def test_file_systems_that_were_not_measured(tmp_path: Path) -> None:
    here = mount_of(tmp_path)
    assert profile(mount=here).lacks(tmp_path / "weights", tmp_path) == []
    assert profile(mount="/elsewhere").lacks(tmp_path / "weights", tmp_path) == [tmp_path / "weights", tmp_path]
    only_read = replace(profile(), disks={here: Disk(here, Link(1e9))})
    assert only_read.lacks(tmp_path / "weights", tmp_path) == [tmp_path]


def test_the_processor_s_name(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nmodel name : Xeon @ 2.50GHz\n")
    assert cpu_model(tmp_path) == "Xeon @ 2.50GHz"
