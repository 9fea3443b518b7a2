"""The simple rule: what it fills first, what it refuses, and that the least it names works."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import UserError
from penstock.plan.policy import TIERS, Shares
from penstock.plan.rule import decide
from penstock.plan.types import Asked, Footprint, Job, Ledger, Placement

MiB = 1 << 20
MODEL = Footprint(
    pages=[50 * MiB, 100 * MiB] * 20 + [60 * MiB],
    tables=frozenset({40}),
    core=8 * MiB,
    call_bytes=100_000,
    logit_bytes=400_000,
    kv_block=2 * MiB,
    block_tokens=16,
    staged_layer=65_536,
)
JOB = Job(prompts=100, mean_tokens=64, longest_tokens=96, longest_prompt=64)
TAKEN = 400 * MiB


def placed(budget: int, asked: Asked | None = None, job: Job = JOB, model: Footprint = MODEL) -> Placement:
    ledger = Ledger({"cpu": budget, "disk": 1 << 40}, {"cpu": TAKEN})
    return decide(model, job, ledger, asked or Asked(), "cpu", 200)


def used(placement: Placement, model: Footprint = MODEL) -> int:
    """Bytes of the cpu tier that a placement takes at most."""
    pages = sum(n for n, home in zip(model.pages, placement.homes, strict=True) if home == "cpu")
    return TAKEN + placement.reserved["cpu"] + placement.kv["cpu"] + pages


def test_everything_rests_in_memory_where_there_is_room():
    placement = placed(8 << 30)
    assert set(placement.homes) == {"cpu"}
    assert placement.policy.rows == 100


def test_what_kv_leaves_holds_pages_spread_over_the_order():
    placement = placed(2 << 30)
    resident = [i for i, home in enumerate(placement.homes) if home == "cpu"]
    assert 0 < len(resident) < len(MODEL.pages)
    assert resident[0] < 10 and resident[-1] > 30


@settings(deadline=None)
@given(
    budget=st.integers(500, 9000).map(lambda n: n * MiB),
    prompts=st.integers(1, 3000),
    rows=st.none() | st.integers(1, 500),
    share=st.none() | st.integers(0, 100),
    kv=st.none() | st.integers(0, 100),
)
def test_a_placement_never_takes_more_than_its_budget(budget, prompts, rows, share, kv):
    asked = Asked(
        weights=None if share is None else Shares(cpu=share / 100, disk=1 - share / 100),
        kv=None if kv is None else Shares(cpu=kv / 100, disk=1 - kv / 100),
        rows=rows,
    )
    try:
        placement = placed(budget, asked, replace(JOB, prompts=prompts))
    except UserError:
        return
    assert used(placement) <= budget
    assert 1 <= placement.policy.rows <= (rows or prompts)


def test_calls_that_wait_for_a_page_are_counted():
    roomy, tight = (placed(8 << 30, Asked(batch_tokens=n, sweep_tokens=1024)).reserved["cpu"] for n in (1024, 32))
    assert roomy - 1024 * 100_000 < tight - 992 * 50_000 < roomy
    parked = Asked(batch_tokens=32, sweep_tokens=1024, activations=Shares(disk=1.0))
    assert tight - 992 * 50_000 < placed(8 << 30, parked).reserved["cpu"] < tight - 900 * 50_000
    small = replace(JOB, prompts=1)
    assert placed(8 << 30, Asked(batch_tokens=32, sweep_tokens=1024), small).reserved["cpu"] < tight - 900 * 50_000


def test_a_tight_budget_makes_sweeps_shorter_before_rows_become_fewer():
    policies = [placed(megabytes * MiB, job=replace(JOB, prompts=1000)).policy for megabytes in (750, 2000)]
    assert policies[0].sweep_tokens < policies[1].sweep_tokens == 1024
    assert policies[0].rows == policies[1].rows == 1000


@pytest.mark.parametrize("asked", [Asked(), Asked(weights=Shares(cpu=0.5, disk=0.5)), Asked(slots=1)])
def test_the_least_that_a_refusal_names_works_and_a_little_less_does_not(asked):
    with pytest.raises(UserError, match="The least that works is") as refused:
        placed(450 * MiB, asked)
    least = int(re.search(r"(\d+)MiB\.$", str(refused.value))[1]) * MiB
    assert used(placed(least, asked)) <= least
    with pytest.raises(UserError):
        placed(least - 18 * MiB, asked)


def test_static_admission_keeps_its_rows_and_micro_batches():
    placement = placed(4 << 30, Asked(batch_size=4, num_batches=3))
    assert placement.policy.admission == "static"
    assert (placement.policy.rows, placement.policy.batch_size, placement.policy.num_batches) == (12, 4, 3)


def test_host_memory_beside_a_gpu_holds_what_is_put_there():
    ledger = Ledger({"gpu": 4 << 30, "cpu": 1 << 30, "disk": 1 << 40}, {"cpu": TAKEN})
    asked = Asked(weights=Shares(cpu=1.0))
    with pytest.raises(UserError, match="--cpu-memory 1 GiB is too small for what is placed there"):
        decide(MODEL, JOB, ledger, asked, "gpu", 0)


def test_kv_on_disk_needs_room_on_disk():
    ledger = Ledger({"cpu": 4 << 30, "disk": 0}, {"cpu": TAKEN})
    with pytest.raises(UserError, match=r"--disk-memory 0 B .* KV of one row 14 MiB\. The least that works is 14MiB\."):
        decide(MODEL, JOB, ledger, Asked(kv=Shares(disk=1.0)), "cpu", 0)


def test_activations_on_disk_need_room_on_disk():
    ledger = Ledger({"cpu": 4 << 30, "disk": MiB}, {"cpu": TAKEN})
    asked = Asked(activations=Shares(disk=1.0), batch_tokens=32, sweep_tokens=1024)
    with pytest.raises(UserError, match="--disk-memory 1 MiB is too small for what is placed there: activations 64"):
        decide(MODEL, JOB, ledger, asked, "cpu", 0)
    enough = replace(ledger, budget={**ledger.budget, "disk": 64 * MiB})
    assert decide(MODEL, JOB, enough, asked, "cpu", 0).reserved["disk"] == 64 * MiB  # 32 files, by doubling


def test_activations_on_the_cpu_beside_a_gpu_are_counted_by_whole_calls():
    """Three calls of which half rest there: two do."""
    ledger = Ledger({"gpu": 1 << 30, "cpu": 2 << 30, "disk": 1 << 40}, {"cpu": TAKEN})
    cut = {"batch_tokens": 100, "sweep_tokens": 300}
    half, all_here = (
        decide(MODEL, JOB, ledger, Asked(activations=shares, **cut), "gpu", 0).reserved["cpu"]
        for shares in (Shares(gpu=0.5, cpu=0.5), Shares(gpu=1.0))
    )
    assert half - all_here == 2 * 100 * 50_000


def test_kv_and_pages_share_host_memory_beside_a_gpu():
    """Neither takes what the other was given, however much both want."""
    ledger = Ledger({"gpu": 1 << 30, "cpu": 2 << 30, "disk": 1 << 40}, {"cpu": TAKEN})
    job = replace(JOB, prompts=3000)
    for weights in (None, Shares(cpu=0.3, disk=0.7)):
        found = decide(MODEL, job, ledger, Asked(kv=Shares(cpu=1.0), weights=weights), "gpu", 0)
        pages = sum(n for n, home in zip(MODEL.pages, found.homes, strict=True) if home == "cpu")
        assert found.kv["cpu"] >= 100 * MODEL.kv_block
        assert pages + found.kv["cpu"] + 2 * 100 * MiB <= ledger.free("cpu")


@settings(deadline=None)
@given(
    compute=st.sampled_from(["cpu", "gpu"]),
    budgets=st.tuples(*[st.integers(0, 3000)] * 3),
    kv=st.none() | st.tuples(*[st.integers(0, 3)] * 3),
    weights=st.none() | st.tuples(*[st.integers(0, 3)] * 3),
    activations=st.none() | st.tuples(*[st.integers(0, 3)] * 3),
    cut=st.sampled_from([{}, {"slots": 1}, {"sweep_tokens": 4096}, {"batch_size": 30, "num_batches": 4}, {"rows": 7}]),
    slack=st.sampled_from([0.0, 0.02, 0.1]),
)
def test_budgets_taken_from_refusals_work(compute, budgets, kv, weights, activations, cut, slack):
    """Each tier that is short is named with a budget that is no longer short: no tier is named twice."""

    def shares(parts):
        if parts is None:
            return None
        whole = [part * (compute == "gpu" or tier > 0) for tier, part in enumerate(parts)]
        return Shares(*(part / sum(whole) for part in whole)) if sum(whole) else None

    asked = Asked(weights=shares(weights), kv=shares(kv), activations=shares(activations), **cut)
    budget = {tier: n * MiB for tier, n in zip(TIERS, budgets, strict=True)}

    def taken(tier):
        return {"cpu": TAKEN, "disk": 5 * MiB}.get(tier, 0) + int(slack * budget[tier])

    named = []
    while True:
        ledger = Ledger(dict(budget), {tier: taken(tier) for tier in TIERS}, dict.fromkeys(TIERS, slack))
        try:
            decide(MODEL, JOB, ledger, asked, compute, 0)
            break
        except UserError as refusal:
            found = re.search(r"^--(\w+)-memory .* The least that works is (\d+)MiB\.$", str(refusal))
            assert found is not None, refusal
            assert found[1] not in named, refusal
            named.append(found[1])
            assert int(found[2]) * MiB > budget[found[1]]
            budget[found[1]] = int(found[2]) * MiB
