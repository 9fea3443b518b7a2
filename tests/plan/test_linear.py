from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.plan.linear import Infeasible, Item, Lane, Program, price, solve, used_bytes
from penstock.plan.policy import TIERS, Tier

GB = 10**9
ITEMS = ("weights", "kv", "activations")


def program(
    sizes: tuple[int, ...] = (16 * GB, 8 * GB, 2 * GB),
    gpu: int = 10 * GB,
    cpu: int = 12 * GB,
    read_b_s: float = 10e9,
    disk_b_s: float = 1e9,
    compute_s: float = 0.1,
) -> Program:
    """A machine that reads everything once a sweep: what rests on disk crosses both links."""
    items = {name: Item(size, TIERS) for name, size in zip(ITEMS, sizes, strict=True)}
    read = {(n, t): i.nbytes / read_b_s for n, i in items.items() for t in TIERS[1:]}
    disk: dict[tuple[str, Tier], float] = {(name, "disk"): item.nbytes / disk_b_s for name, item in items.items()}
    lanes = {"cpu→gpu": Lane(0.0, read), "disk→cpu": Lane(0.0, disk), "compute": Lane(compute_s, {})}
    return Program(items, {"gpu": gpu, "cpu": cpu}, lanes)


sizes = st.tuples(*[st.integers(0, 100 * GB)] * 3)
room = st.integers(0, 200 * GB)
rate = st.floats(1e8, 1e12)
programs = st.builds(program, sizes, room, room, rate, rate, st.floats(0.0, 100.0))
shares_of_one = st.tuples(*[st.floats(0.0, 1.0)] * 3).filter(lambda parts: sum(parts) > 0.01)
placements = st.tuples(*[shares_of_one] * 3)


def test_what_fits_the_gpu_rests_there() -> None:
    optimum = solve(program(gpu=26 * GB))
    assert optimum.shares == {name: {"gpu": 1.0, "cpu": 0.0, "disk": 0.0} for name in ITEMS}
    assert optimum.seconds == 0.1
    assert optimum.lanes == {"cpu→gpu": 0.0, "disk→cpu": 0.0, "compute": 0.1}
    assert optimum.byte_duals == {"gpu": 0.0, "cpu": 0.0}


def test_an_optimum_by_hand() -> None:
    # 26 GB, of which 10 on the gpu and 12 on the cpu: 4 GB come from disk at 1 GB/s, and 16 cross to the gpu at 10.
    optimum = solve(program())
    assert optimum.seconds == pytest.approx(4.0)
    assert optimum.lanes["cpu→gpu"] == pytest.approx(1.6)
    assert optimum.byte_duals["gpu"] == pytest.approx(1e-9)
    assert optimum.byte_duals["cpu"] == pytest.approx(1e-9)
    assert optimum.lane_duals == pytest.approx({"cpu→gpu": 0.0, "disk→cpu": 1.0, "compute": 0.0})


def test_a_dual_says_what_memory_buys() -> None:
    bound = solve(program())
    more = solve(program(cpu=13 * GB))
    assert bound.seconds - more.seconds == pytest.approx(bound.byte_duals["cpu"] * GB)


def test_equal_optima_fill_faster_tiers_first() -> None:
    # Compute takes longer than everything read from disk, so that every placement is as fast.
    optimum = solve(program(compute_s=1000.0))
    used = used_bytes(program(), optimum.shares)
    assert used == pytest.approx({"gpu": 10 * GB, "cpu": 12 * GB, "disk": 4 * GB})
    assert optimum.seconds == 1000.0


def test_equal_optima_on_equal_tiers_move_least() -> None:
    # Both items are as large, but one is read twice a sweep.
    items = {"once": Item(GB, TIERS[:2]), "twice": Item(GB, TIERS[:2])}
    lanes = {"cpu→gpu": Lane(0.0, {("once", "cpu"): 0.1, ("twice", "cpu"): 0.2}), "compute": Lane(9.0, {})}
    optimum = solve(Program(items, {"gpu": GB}, lanes))
    assert optimum.shares == {"once": {"gpu": 0.0, "cpu": 1.0}, "twice": {"gpu": 1.0, "cpu": 0.0}}


def test_without_settled_ties_the_seconds_are_the_same() -> None:
    assert solve(program(), settle_ties=False).seconds == pytest.approx(solve(program()).seconds)


def test_phases_follow_each_other() -> None:
    items = {"weights": Item(GB, TIERS[:2])}
    lanes = {
        "read": Lane(0.0, {("weights", "cpu"): 1.0}, "prefill"),
        "compute": Lane(2.0, {}, "prefill"),
        "read again": Lane(0.5, {("weights", "cpu"): 1.0}, "decode"),
    }
    optimum = solve(Program(items, {"gpu": GB // 4}, lanes, {"prefill": 1.0, "decode": 10.0}))
    assert optimum.shares["weights"] == pytest.approx({"gpu": 0.25, "cpu": 0.75})
    assert optimum.seconds == pytest.approx(2.0 + 10 * 1.25)
    assert optimum.lane_duals == pytest.approx({"read": 0.0, "compute": 1.0, "read again": 10.0})


def test_slots_count_for_what_streams_through_them() -> None:
    weights = Item(8 * GB, TIERS[:2], {("cpu", "gpu"): 2 * GB})
    lanes = {"cpu→gpu": Lane(0.0, {("weights", "cpu"): 1.0})}
    assert solve(Program({"weights": weights}, {"gpu": 8 * GB}, lanes)).shares["weights"]["gpu"] == 1.0
    optimum = solve(Program({"weights": weights}, {"gpu": 5 * GB}, lanes))
    assert optimum.shares["weights"]["gpu"] == pytest.approx(0.5)  # 4 GB rest, and half of 2 GB are slots


def test_what_does_not_fit_says_what_is_missing() -> None:
    items = {"weights": Item(20 * GB, TIERS[:2]), "kv": Item(4 * GB, ("gpu",))}
    lanes = {"cpu→gpu": Lane(0.0, {("weights", "cpu"): 1.0})}
    with pytest.raises(Infeasible, match=r"2.8 GiB of cpu memory are missing") as caught:
        solve(Program(items, {"gpu": 6 * GB, "cpu": 15 * GB}, lanes))
    assert caught.value.short == {"cpu": 3 * GB}
    with pytest.raises(Infeasible) as caught:
        solve(Program(items, {"gpu": 3 * GB, "cpu": 15 * GB}, lanes))
    assert caught.value.short == {"gpu": GB, "cpu": 5 * GB}


def test_a_given_placement_may_overflow() -> None:
    everything = {name: {"gpu": 0.5, "cpu": 0.5} for name in ITEMS}
    seconds, lanes, short = price(program(), everything)
    assert seconds == pytest.approx(1.3)
    assert lanes == pytest.approx({"cpu→gpu": 1.3, "disk→cpu": 0.0, "compute": 0.1})
    assert short == {"gpu": 3 * GB, "cpu": GB}


def test_a_tier_that_an_item_may_not_rest_on() -> None:
    tied = Program({"kv": Item(GB, ("gpu", "cpu"))}, {}, {"compute": Lane(1.0, {})})
    with pytest.raises(ValueError, match="kv cannot rest on disk: its tiers are gpu, cpu"):
        price(tied, {"kv": {"disk": 1.0}})


def test_phases_without_lanes() -> None:
    with pytest.raises(ValueError, match=r"phases \['sweep'\], of which times has \['decode'\]"):
        Program({}, {}, {"compute": Lane(1.0, {})}, {"decode": 1.0})


@settings(max_examples=40, deadline=None)
@given(sizes.filter(any), st.floats(0.0, 1.0))
def test_memory_that_is_just_enough(sizes: tuple[int, ...], part: float) -> None:
    items = {name: Item(size, TIERS[:2]) for name, size in zip(ITEMS, sizes, strict=True)}
    lanes = {"cpu→gpu": Lane(0.0, {(name, "cpu"): item.nbytes / 1e9 for name, item in items.items()})}
    gpu = round(part * sum(sizes))
    exact = Program(items, {"gpu": gpu, "cpu": sum(sizes) - gpu}, lanes)
    optimum = solve(exact)
    assert price(exact, optimum.shares).short == {}
    assert optimum.seconds == pytest.approx(exact.capacity["cpu"] / 1e9, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(programs)
def test_shares_sum_to_one_and_fit(given: Program) -> None:
    optimum = solve(given)
    for parts in optimum.shares.values():
        assert sum(parts.values()) == pytest.approx(1.0)
        assert all(0.0 <= part <= 1.0 for part in parts.values())
    assert price(given, optimum.shares).short == {}
    assert sum(optimum.lane_duals.values()) == pytest.approx(1.0)
    assert all(dual >= 0.0 for dual in optimum.byte_duals.values())


@settings(max_examples=40, deadline=None)
@given(programs, placements)
def test_no_placement_that_fits_is_faster(given: Program, parts: tuple[tuple[float, ...], ...]) -> None:
    placement = {
        name: {tier: part / sum(of) for tier, part in zip(TIERS, of, strict=True)}
        for name, of in zip(ITEMS, parts, strict=True)
    }
    # Memory that holds the sampled placement, so that every sample is a feasible point.
    held = used_bytes(given, placement)
    roomy = replace(given, capacity={tier: round(held[tier]) + 1 for tier in given.capacity})
    assert solve(roomy).seconds <= price(roomy, placement).seconds * (1 + 1e-7) + 1e-9


@settings(max_examples=40, deadline=None)
@given(sizes, room, room, rate, rate, st.sampled_from(["gpu", "cpu", "read_b_s", "disk_b_s"]), st.floats(1.0, 8.0))
def test_more_memory_or_bandwidth_is_never_slower(
    sizes: tuple[int, ...], gpu: int, cpu: int, read_b_s: float, disk_b_s: float, better: str, factor: float
) -> None:
    machine = {"gpu": gpu, "cpu": cpu, "read_b_s": read_b_s, "disk_b_s": disk_b_s}
    improved = machine | {better: type(machine[better])(machine[better] * factor)}
    before = solve(program(sizes, **machine), settle_ties=False).seconds  # type: ignore[arg-type]  # ints and floats
    after = solve(program(sizes, **improved)).seconds  # type: ignore[arg-type]
    assert after <= before * (1 + 1e-7) + 1e-9
