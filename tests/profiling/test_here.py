"""This host's profile, as it is found, added to or made: what is measured is a stand-in."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.profiling.profiles import HERE, profile

from penstock.errors import UserError
from penstock.machine.machine import Link
from penstock.profiling import here
from penstock.profiling.disk import mount_of
from penstock.profiling.here import host_machine, stored_machine
from penstock.profiling.measure import SHORT, Form, Progress
from penstock.profiling.profile import Profile
from penstock.profiling.profile_file import load_profile, save_profile

MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(here, "gpu_name", lambda: None)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Form, Mapping[str, int] | None]]:
    """The forms that were measured, and the rooms for matrices that were given with them."""
    done: list[tuple[Form, Mapping[str, int] | None]] = []

    def measure(extents: object, offload: Path, form: Form, progress: Progress, rooms: Any = None) -> Profile:
        done.append((form, rooms))
        progress("disks", 6.0, 15.0)
        return profile(form.name, mount=mount_of(tmp_path))

    monkeypatch.setattr(here, "measure_profile", measure)
    return done


def test_what_is_stored_is_used(measured: list[Any], tmp_path: Path) -> None:
    save_profile(profile(mount=mount_of(tmp_path)))
    said: list[Mapping[str, Any]] = []
    machine = host_machine([], tmp_path, said.append)
    assert machine.links["disk→cpu"].bytes_per_s == 1.4e9
    stored = stored_machine([], tmp_path)
    assert stored is not None and stored.links == machine.links
    assert not measured and not said


def test_a_host_is_measured_once_and_that_is_said(measured: list[Any], tmp_path: Path) -> None:
    said: list[Mapping[str, Any]] = []
    assert stored_machine([], tmp_path) is None
    host_machine([], tmp_path, said.append)
    host_machine([], tmp_path, said.append)
    assert measured == [(SHORT, None)]
    assert said == [
        {"kind": "note", "text": "measuring this host, once, for about 15 s (penstock profile measures longer)"},
        {"kind": "load", "what": "measuring disks", "done": 6.0, "total": 15.0, "unit": "s"},
    ]


@pytest.mark.parametrize(("then", "now"), [(None, "T4"), ("T4", None), ("T4", "H100")])
def test_a_gpu_that_came_or_went_is_noticed(
    then: str | None, now: str | None, measured: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_profile(profile(host=replace(HERE, gpu=then), mount=mount_of(tmp_path)))
    monkeypatch.setattr(here, "gpu_name", lambda: now)
    assert stored_machine([], tmp_path) is None
    said: list[Mapping[str, Any]] = []
    host_machine([], tmp_path, said.append)
    assert len(measured) == 1
    assert f"measured with {then or 'no gpu'}, now there is {now or 'none'}" in said[0]["text"]


def test_a_measurement_keeps_to_the_budgets(measured: list[Any], tmp_path: Path) -> None:
    host_machine([], tmp_path, lambda event: None, {"cpu": 300 * MIB, "disk": 256 * MIB})
    ((form, rooms),) = measured
    assert rooms is not None and rooms["cpu"] == 150 * MIB
    assert (form.copied_bytes, form.file_bytes, form.kv_bytes) == (75 * MIB, 128 * MIB, 64 * MIB)


def test_budgets_that_are_large_change_nothing(measured: list[Any], tmp_path: Path) -> None:
    host_machine([], tmp_path, lambda event: None, {"cpu": 100 * GIB, "disk": 100 * GIB})
    assert measured[0][0] == SHORT


@pytest.mark.parametrize(
    ("room", "said"),
    [
        ({"cpu": 100 * MIB, "disk": GIB}, "takes 256 MiB of cpu, and the budget leaves 100 MiB"),
        ({"cpu": -5, "disk": GIB}, "takes 256 MiB of cpu, and the budget leaves 0 B"),
        ({"cpu": GIB, "disk": 0}, "takes 128 MiB of disk, and the budget leaves 0 B: run penstock profile first"),
    ],
)
def test_budgets_that_nothing_can_be_measured_in_are_one_line(
    room: Any, said: str, measured: list[Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as refused:
        host_machine([], tmp_path, lambda event: None, room)
    assert "\n" not in str(refused.value) and not measured


def test_a_disk_that_was_not_measured_is_added_and_kept(
    measured: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_profile(profile(mount="/elsewhere"))
    added = profile(mount=mount_of(tmp_path)).disks
    slow = {mount: replace(disk, read=Link(1e8)) for mount, disk in added.items()}
    monkeypatch.setattr(here, "with_disks", lambda stored, *rest: replace(stored, disks={**stored.disks, **slow}))
    assert host_machine([], tmp_path, lambda event: None).links["disk→cpu"].bytes_per_s == 1e8
    stored = load_profile()
    assert stored is not None and stored.disks.keys() == {"/elsewhere", mount_of(tmp_path)}
    assert not measured


def test_a_disk_that_cannot_be_measured_is_taken_for_the_one_that_was(
    measured: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> Profile:
        raise UserError("the disk is full")

    save_profile(profile(mount="/elsewhere"))
    monkeypatch.setattr(here, "with_disks", refuse)
    said: list[Mapping[str, Any]] = []
    machine = host_machine([], tmp_path, said.append)
    assert machine.links["disk→cpu"].bytes_per_s == 1.4e9
    assert "the disk is full; planned as if it were the disk that was measured" in said[-1]["text"]
