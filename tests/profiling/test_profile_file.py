import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.profiling.profiles import profile

from penstock.errors import UserError
from penstock.profiling.profile_file import load_profile, profile_path, save_profile


def test_what_is_stored_is_read_again(tmp_path: Path) -> None:
    stored = save_profile(profile(), tmp_path / "profile.json")
    assert load_profile(stored) == profile()


def test_a_profile_of_before_some_things_were_measured(tmp_path: Path) -> None:
    stored = save_profile(profile(), tmp_path / "profile.json")
    record = json.loads(stored.read_text())
    for name in ("dequantise_per_s", "expert_s", "fresh_bytes_per_s"):
        del record["machine"]["processors"]["cpu"][name]
    stored.write_text(json.dumps(record))
    found = load_profile(stored)
    assert found is not None
    cpu = found.machine.processors["cpu"]
    assert math.isinf(cpu.dequantise_per_s) and cpu.expert_s == 0 and math.isinf(cpu.fresh_bytes_per_s)


def test_no_profile(tmp_path: Path) -> None:
    assert load_profile(tmp_path / "profile.json") is None


def test_it_lies_in_the_user_s_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "new"))
    save_profile(profile())
    assert profile_path() == tmp_path / "new/profile.json"
    assert load_profile() == profile()


def test_a_person_can_read_it(tmp_path: Path) -> None:
    text = save_profile(profile(), tmp_path / "profile.json").read_text()
    assert json.loads(text)["machine"]["processors"]["cpu"]["attention"] == {"1": 1.6e10, "256": 1.1e11}
    assert json.loads(text)["machine"]["links"]["disk→cpu"] == {
        "bytes_per_s": 1.4e9,
        "latency_s": 2.1e-4,
        "jitter": 0.125,
    }


def _links(data: Any) -> Any:
    return data["machine"]["links"]


def _cpu(data: Any) -> Any:
    return data["machine"]["processors"]["cpu"]


MISTAKES: list[tuple[Callable[[Any], object], str]] = [
    (lambda d: d.update(measured="2026-11-21T00:00:00"), "measured is '2026-11-21T00:00:00', and should"),
    (lambda d: _links(d)["disk→cpu"].update(bytes_per_s=0), "machine.links.disk→cpu.bytes_per_s is 0, and should be"),
    (lambda d: _links(d)["cpu→disk"].update(latency_s=-1), "machine.links.cpu→disk.latency_s is -1"),
    (lambda d: _cpu(d)["products"]["float32"].update({"1": -5e9}), "machine.processors.cpu.products.float32.1 is"),
    (lambda d: _cpu(d)["products"].update(float32={}), "machine.processors.cpu.products.float32: should"),
    (lambda d: _links(d)["cpu→disk"].update(bytes_per_s=1e-320), "machine.links.cpu→disk.bytes_per_s is 1e-320"),
    (lambda d: _cpu(d).update(expert_s=-1e-6), "machine.processors.cpu.expert_s is -1e-06"),
    (lambda d: _cpu(d).update(dequantise_per_s=0), "machine.processors.cpu.dequantise_per_s is 0"),
    (lambda d: d["host"].update(memory_bytes=10**400), "host.memory_bytes is 1"),
    (lambda d: _cpu(d).update(kv_bytes_per_s="fast"), "machine.processors.cpu.kv_bytes_per_s is 'fast'"),
    (lambda d: _cpu(d).pop("visit_s"), "machine.processors.cpu.visit_s is missing"),
    (lambda d: d["machine"].update(compute_loses=1.5), "machine.compute_loses is 1.5"),
    (lambda d: d["machine"].update(speed=1), "machine.speed is not known here"),
    (lambda d: _links(d).pop("disk→cpu"), "machine.links.disk→cpu is missing; mend it"),
    (
        lambda d: d["machine"]["processors"].update(gpu=d["machine"]["processors"].pop("cpu")),
        "machine.processors.cpu is",
    ),
    (lambda d: d["machine"]["processors"].update(gpu=_cpu(d)), "machine.memory.gpu is missing"),
    (lambda d: d["machine"]["memory"].pop("cpu"), "machine.memory.cpu is missing"),
    (lambda d: d.pop("host"), "host is missing"),
    (lambda d: d.update(measured="yesterday"), "measured is 'yesterday'"),
]


@pytest.mark.parametrize(("spoil", "told"), MISTAKES)
def test_a_mistake_of_an_editor_is_one_line(tmp_path: Path, spoil: Callable[[Any], object], told: str) -> None:
    path = save_profile(profile(), tmp_path / "profile.json")
    data = json.loads(path.read_text())
    spoil(data)
    path.write_text(json.dumps(data))
    with pytest.raises(UserError) as caught:
        load_profile(path)
    assert str(caught.value).startswith(f"{path}: {told}")
    assert "\n" not in str(caught.value) and "--force" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "not json", "\0"])
def test_what_is_no_json_object_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_profile(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
