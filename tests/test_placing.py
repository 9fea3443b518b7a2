"""Saved plans at the door: what this host's engine cannot do is refused before anything is loaded."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import penstock.placing
from penstock.errors import UserError
from penstock.placing import Placing, _lengths
from penstock.plan.policy import Policy, Shares, Tier
from penstock.plan.saved import Expected, Identity, SavedPlan
from penstock.plan.types import Asked, Footprint, Job, Ledger, Length, Placement
from penstock.profiling import here

CPU = Shares(cpu=1.0)
POLICY = Policy(CPU, CPU, CPU, rows=2, sweep_tokens=64, batch_tokens=64)
PLACED = Placement(POLICY, ("cpu", "disk"), {"cpu": 1 << 20}, 0, {"cpu": 1 << 20})
FOOTPRINT = Footprint([1 << 20] * 2, frozenset(), 0, 0, 0, 0, 16, layers=[0, 1])
MODEL = SimpleNamespace(
    layout=SimpleNamespace(pages=[SimpleNamespace(nbytes=1 << 20)] * 2),
    source=SimpleNamespace(name="tiny"),
    footprint=lambda: None,
)


def chosen(
    placed: Placement, fingerprint: str = "same", budget: int = 1 << 30, compute: Tier = "cpu", transforms: bool = False
) -> Placement:
    identity = Identity("tiny", fingerprint, 2, 2 << 20)
    saved = SavedPlan(identity, "here", "a job", {}, placed, Expected(1.0, 1.0, 1.0, 1.0, {}))
    model: Any = SimpleNamespace(**vars(MODEL) | {"footprint": lambda: replace(FOOTPRINT, transforms=transforms)})
    placing = Placing(model, Asked(), saved, compute, Path(), lambda event: None)
    ledger = Ledger({"gpu": budget, "cpu": budget, "disk": 1 << 40}, {"cpu": budget // 50}, {"cpu": 1 / 50})
    return placing.choose(Job(2, 8, 8, 4), lambda: ledger)


@pytest.fixture(autouse=True)
def same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(penstock.placing, "fingerprint", lambda source: "same")


def test_a_plan_of_this_host_is_taken_as_it_is() -> None:
    assert chosen(PLACED) is PLACED


def test_kv_that_could_not_come_to_where_it_is_attended_to_is_refused() -> None:
    with pytest.raises(UserError, match=r"^--plan leaves no room for KV on its way .*plan again"):
        chosen(replace(PLACED, policy=replace(POLICY, kv=Shares(cpu=0.5, disk=0.5))))


@pytest.mark.parametrize("transforms", [False, True])
def test_attention_on_the_cpu_beside_a_gpu_runs_where_keys_need_not_come(transforms: bool) -> None:
    beside = replace(PLACED, policy=replace(POLICY, attention="cpu"), homes=("gpu", "disk"))
    if not transforms:
        assert chosen(beside, compute="gpu") is beside
        return
    with pytest.raises(UserError, match="has attention on cpu, and this model transforms keys"):
        chosen(beside, compute="gpu", transforms=True)


SPLIT = replace(
    PLACED,
    policy=replace(POLICY, activations=Shares(gpu=1.0), attention="cpu", cpu_layers=1, cpu_tokens=8),
    homes=("cpu", "gpu"),
    reserved={"cpu": 1 << 20, "gpu": 1 << 20},
)


@pytest.mark.parametrize(
    ("edited", "compute", "said"),
    [
        (SPLIT, "gpu", None),
        (
            replace(SPLIT, policy=replace(SPLIT.policy, cpu_layers=3)),
            "gpu",
            r"computes layers on cpu \(3\), and this model's",
        ),
        (
            replace(SPLIT, homes=("gpu", "cpu")),
            "gpu",
            r"computes layers on cpu \(1\), and not all of their pages rest there",
        ),
        (
            replace(SPLIT, policy=replace(SPLIT.policy, kv=Shares(gpu=1.0))),
            "gpu",
            "and has KV, attention or activations",
        ),
    ],
)
def test_layers_on_the_cpu_beside_a_gpu_run_where_all_that_goes_with_them_does(
    edited: Placement, compute: Tier, said: str | None
) -> None:
    if said is None:
        assert chosen(edited, compute=compute) is edited
        return
    with pytest.raises(UserError, match=said):
        chosen(edited, compute=compute)


def test_the_cpu_s_kernels_are_wanted_where_it_may_compute_layers() -> None:
    saved = SavedPlan(
        Identity("tiny", "same", 2, 2 << 20), "here", "a job", {}, SPLIT, Expected(1.0, 1.0, 1.0, 1.0, {})
    )
    model: Any = MODEL
    for asked, plan, wanted in ((Asked(), None, False), (Asked(cpu_layers=2), None, True), (Asked(), saved, True)):
        assert Placing(model, asked, plan, "gpu", Path(), lambda event: None).may_split is wanted
    assert Placing(model, Asked(cpu_layers=None), None, "gpu", Path(), lambda event: None).may_split


def test_another_model_s_plan_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"--plan is for tiny \(other\), and this is tiny \(same\)"):
        chosen(PLACED, fingerprint="other")


def test_a_budget_that_is_too_small_for_it_is_told_one_that_is_not() -> None:
    with pytest.raises(
        UserError, match=r"^--cpu-memory 1 MiB is .* --plan, which puts 3 MiB there beside .* taken: give 20MiB, or"
    ):
        chosen(PLACED, budget=1 << 20)
    assert chosen(PLACED, budget=20 << 20) is PLACED


def test_kv_and_activations_on_disk_keep_the_budget_there() -> None:
    spilled = replace(PLACED, kv={"cpu": 1 << 20, "disk": 1 << 40}, reserved={"cpu": 1 << 20, "disk": 1 << 20})
    with pytest.raises(UserError, match=r"^--disk-memory 1 TiB is too small for --plan, .*there: give 1048577MiB"):
        chosen(spilled)
    assert chosen(replace(spilled, kv={"disk": 1 << 20})).kv == {"disk": 1 << 20}


def test_rows_beyond_those_that_were_looked_at_begin_as_they_do_and_are_no_copies_of_them() -> None:
    shared = tuple(range(32))
    known = tuple(Length(48, 4, (*shared, *range(100 * n, 100 * n + 16))) for n in range(1, 4))
    lengths = _lengths(Job(7, 52, 52, 48, known))
    assert lengths[:3] == list(known)
    prompts = [tuple(length.ids or ()) for length in lengths]
    assert all(ids[:32] == shared and len(ids) == 48 for ids in prompts)
    assert len({ids[32:] for ids in prompts}) == 7


def test_a_host_is_measured_within_the_run_s_own_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    rooms: list[object] = []
    notes: list[object] = []

    def measured(extents: object, offload: Path, on_event: object, room: object) -> None:
        rooms.append(room)
        raise UserError("that is too little")

    monkeypatch.setattr(here, "host_machine", measured)
    pages = [SimpleNamespace(nbytes=16 << 20, kind="layer", extents=())] * 4
    footprint = Footprint([16 << 20] * 4, frozenset(), 1 << 20, 16 << 10, 4096, 64 << 10, 16)
    model: Any = SimpleNamespace(layout=SimpleNamespace(pages=pages), footprint=lambda: footprint)
    placing = Placing(model, Asked(), None, "cpu", Path(), lambda event: notes.append(event["text"]))
    ledger = Ledger({"gpu": 0, "cpu": 80 << 20, "disk": 256 << 20}, {"cpu": 16 << 20})
    rough = placing.choose(Job(40, 300, 300, 200), lambda: ledger)
    assert rooms == [{"cpu": 64 << 20, "disk": 256 << 20}]
    assert notes == ["not planned: that is too little"] and "disk" in rough.homes


@pytest.mark.parametrize(("compute", "asked", "searches"), [("gpu", Asked(), True), ("cpu", Asked(), False)])
def test_what_is_too_large_for_a_gpu_is_still_searched(
    monkeypatch: pytest.MonkeyPatch, compute: Tier, asked: Asked, searches: bool
) -> None:
    """The cpu beside it may have some of the work."""

    def refused(*given: object) -> None:
        raise UserError("too small")

    monkeypatch.setattr(penstock.placing, "decide", refused)
    monkeypatch.setattr(
        penstock.placing, "searched", lambda case, sketches: SimpleNamespace(best=SimpleNamespace(placement=PLACED))
    )
    known = {"_measured": lambda *given: None, "_known": lambda *given: "measured", "_case": lambda *given: "case"}
    for name, made in known.items():
        monkeypatch.setattr(Placing, name, made)
    model: Any = MODEL
    placing = Placing(model, asked, None, compute, Path(), lambda event: None)
    if searches:
        assert placing.choose(Job(2, 8, 8, 4), lambda: Ledger({}, {})) is PLACED
        return
    with pytest.raises(UserError, match="too small"):
        placing.choose(Job(2, 8, 8, 4), lambda: Ledger({}, {}))
