import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from penstock.engine import few
from penstock.engine.linear import Widening
from penstock.memory.device import CpuDevice
from penstock.model.pages import Extent
from penstock.profiling import measure
from penstock.profiling.measure import LONG, SHORT, Form, measure_machine, measure_profile, with_disks
from penstock.profiling.place import Place
from penstock.profiling.profile import stale_reasons
from penstock.profiling.profile_file import load_profile, save_profile

MIB = 1 << 20
TINY = Form(
    "short",
    budget_s=0.5,
    auto_only=True,
    tokens=(1, 8),
    width=512,
    keys=(5, 20),
    spans=(4,),
    layers=(1, 2),
    file_bytes=MIB,
    kv_bytes=MIB,
    copied_bytes=MIB,
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.profiling.place.last_level_bytes", lambda: 1 << 16)


def test_a_profile_of_this_host(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(os.urandom(MIB))
    said: list[tuple[str, float, float]] = []
    found = measure_profile(
        [Extent(str(tmp_path / "weights"), 0, MIB, 0)],
        tmp_path,
        TINY,
        lambda *told: said.append(told),
        {"cpu": 8 * MIB},
    )
    machine, cpu = found.machine, found.machine.processors["cpu"]
    assert {"disk→cpu", "cpu→disk"} <= machine.links.keys()
    assert machine.memory["cpu"] > 1 << 28
    assert 0 <= machine.compute_loses < 1 and 0 <= machine.disk_loses < 1
    assert cpu.visit_s > 0 and cpu.activation_bytes_per_s > 0
    assert "links" in machine.source
    assert stale_reasons(found, found.host) == []
    done_s = [done_s for _, done_s, _ in said]
    assert done_s == sorted(done_s) and said[-1] == ("", TINY.budget_s, TINY.budget_s)
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]

    stored = load_profile(save_profile(found, tmp_path / "profile.json"))
    assert stored is not None and stored.machine.processors["cpu"].products.keys() == cpu.products.keys()

    more = with_disks(replace(found, disks={}), None, tmp_path, TINY, lambda what, done_s, total_s: None)
    assert more.disks.keys() == found.disks.keys() and more.machine is found.machine


def test_forms_and_their_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Form] = []

    class Stop(Exception):
        pass

    def measured(checkpoint: object, offload_dir: object, form: Form, progress: object) -> None:
        asked.append(form)
        raise Stop

    monkeypatch.setattr(measure, "measure_profile", measured)
    for arguments in ({}, {"short": True}, {"budget_s": 20.0}, {"budget_s": 5.0, "short": True}):
        with pytest.raises(Stop):
            measure_machine(None, tmp_path, **arguments)
    assert [(form.name, form.budget_s) for form in asked] == [("long", 60), ("short", 15), ("long", 20), ("short", 5)]
    assert (LONG.tokens[-1], SHORT.tokens[-1]) == (4096, 1024)


def test_later_steps_pay_for_what_took_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    steps = measure._Steps(10.0, lambda what, done_s, total_s: None)
    assert steps.begin("first", 0.4) == pytest.approx(4.0)
    now[0] = 9.5
    assert steps.begin("second", 0.2) < 0.5
    now[0] = 20.0
    assert steps.begin("third", 0.1) == 0.0


def test_what_is_done_is_told_in_seconds_of_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.time, "perf_counter", lambda: 0.0)
    told: list[tuple[str, float, float]] = []
    for shares, parts in ((measure._ALL, (measure._ALL / 4, measure._ALL / 2)), (measure._DISKS, (measure._DISKS,))):
        steps = measure._Steps(60.0, lambda *told_of: told.append(told_of), shares=shares)
        for number, share in enumerate(parts):
            steps.begin(f"step {number}", share)
        steps.say("")
    disks_s = pytest.approx(60.0 * measure._DISKS / measure._ALL)
    assert told == [
        ("step 0", 0.0, 60.0),
        ("step 1", 15.0, 60.0),
        ("", 60.0, 60.0),
        ("step 0", 0.0, disks_s),
        ("", disks_s, disks_s),
    ]


def test_compiling_is_part_of_the_time_up_to_a_third_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.time, "perf_counter", lambda: 100.0)

    def left(compiling_s: float) -> float:
        return (
            measure._Steps(30.0, lambda what, done_s, total_s: None, compiling_s).begin("all", measure._ALL)
            / measure._ALL
        )

    assert left(0.0) == left(3.0) == pytest.approx(30.0)  # making models and files has a part of its own
    assert left(10.0) * measure._ALL == left(60.0) * measure._ALL == pytest.approx(20.0)


def test_warming_up_runs_every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[int, int]] = []
    linear = Widening.linear

    def seen(self: Widening, x: torch.Tensor, weight: torch.Tensor, bias: None) -> torch.Tensor:
        ran.append((x.shape[1], weight.shape[0]))
        return linear(self, x, weight, bias)

    monkeypatch.setattr(Widening, "linear", seen)
    place = Place(CpuDevice(), cpu_bfloat16=False, cache_bytes=1 << 16, room_bytes=1 << 26)
    measure._warm_up(place, TINY)
    tokens = {tokens for tokens, _ in ran}  # of which one, a few and many take kernels of their own
    assert 1 in tokens and any(1 < t <= few.MOST for t in tokens) and max(tokens) > few.MOST
    assert all(width >= 512 for _, width in ran)
