"""Why a plan is as it is: what it takes, what would help, and what other ways would do."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from penstock.errors import UserError
from penstock.machine.machine import Machine
from penstock.plan.case import Case
from penstock.plan.cost import packed
from penstock.plan.plan import Alternative, Gain, Plan, Use
from penstock.plan.policy import TIERS, Shares, Tier
from penstock.plan.search import Candidate, Search
from penstock.plan.sizes import Cut, Sizes
from penstock.plan.types import Asked, Ledger, Placement
from penstock.plan.virtual import VirtualRun
from penstock.units import format_bytes

_GIB = 1 << 30


def explain(case: Case, machine: Machine, job: str, budget_notes: Sequence[str] = ()) -> Plan:
    """The best plan of a case, with everything that is said of it. Raises UserError where nothing fits."""
    search = Search(case)
    ranked = search.best()
    best = ranked[0]
    return Plan(
        model=case.shape.name,
        machine=machine.name,
        job=job,
        policy=best.placement.policy,
        memory=memory(case, best),
        predicted=best.predicted,
        placement=best.placement,
        duals=duals(case, search, best),
        gains=tuple(gains(case, best)),
        runners_up=tuple(runners_up(case, search, ranked)),
        notes=tuple(budget_notes),
        curve=tuple(search.curve()),
    )


def priced(case: Case, machine: Machine, job: str, placement: Placement) -> Plan:
    """A placement as it was given, whether it fits or not, with what it would do if it did."""
    # the scheduler counts blocks as they are unpacked; and new KV is on the compute tier only while its layer is
    # computed, so none of it stays there between sweeps
    part = packed(case.kv_bits, 16)
    room = {tier: int(nbytes / part) for tier, nbytes in placement.kv.items()}
    room[case.compute] = room.get(case.compute, 0) + 2 * sum(room.values())
    roomy = replace(placement, kv=room)
    candidate = Candidate(placement, VirtualRun(case, roomy).predict(case.lengths), sketched=False)
    plan = Plan(
        model=case.shape.name,
        machine=machine.name,
        job=job,
        policy=placement.policy,
        memory=memory(case, candidate),
        predicted=candidate.predicted,
        placement=placement,
    )
    if plan.fits:
        return plan
    short = " and ".join(f"{format_bytes(use.short)} of {tier}" for tier, use in plan.memory.items() if use.short)
    return replace(plan, placement=None, why_not=f"it is short of {short}")


def memory(case: Case, candidate: Candidate) -> Mapping[Tier, Use]:
    """What a placement takes on each tier that there is, as the rule counted it."""
    placement, ledger = candidate.placement, case.ledger
    policy = placement.policy
    cut = Cut(policy.slots, policy.batch_tokens, policy.rows, policy.sweep_tokens)
    sizes = Sizes(case.shape.footprint, case.job, ledger, replace(case.asked, kv=policy.kv), case.compute)
    suspended, used = sizes.suspended(cut), {}
    for tier in TIERS:
        if tier not in ledger.budget or (tier == "gpu" and case.compute != "gpu"):
            continue
        weights = sum(page.nbytes for page, home in zip(case.shape.pages, placement.homes, strict=True) if home == tier)
        reserved = placement.reserved.get(tier, 0)
        if tier == case.compute:
            buffers = max(0, reserved - suspended)
        else:
            buffers = min(reserved, 2 * sizes.page) if tier == "cpu" else 0
        used[tier] = Use(
            budget=ledger.budget[tier],
            taken=ledger.taken.get(tier, 0),
            weights=int(weights * packed(case.weight_bits, case.shape.weight_bits)),
            kv=placement.kv.get(tier, 0),
            activations=reserved - buffers,
            buffers=buffers,
        )
    return used


def duals(case: Case, search: Search, best: Candidate) -> Mapping[str, float]:
    """tok/s that one more byte of a tier, or byte per second of a link, buys, by the linear program at the plan."""
    policy = best.placement.policy
    cut = Cut(policy.slots, policy.batch_tokens, policy.rows, policy.sweep_tokens)
    estimate = search.steady.placed(cut)
    if estimate is None or estimate.optimum is None or not estimate.optimum.seconds:
        return {}
    found, speed = estimate.optimum, best.predicted.total_tok_s
    per_second = speed / found.seconds
    bytes_worth: dict[str, float] = {tier: per_second * dual for tier, dual in found.byte_duals.items()}
    for name, link in case.machine.links.items():
        bytes_worth[name] = per_second * found.lane_duals.get(name, 0.0) * found.lanes.get(name, 0.0) / link.bytes_per_s
    return {name: worth for name, worth in bytes_worth.items() if worth > 0}


def gains(case: Case, best: Candidate) -> Iterator[Gain]:
    """What one more GiB of each memory, and each link twice as fast, would do, searched again."""
    for tier in ("gpu", "cpu"):
        if case.ledger.budget.get(tier, 0) > 0 and (tier == "cpu" or case.compute == "gpu"):
            budget: dict[Tier, int] = {**case.ledger.budget, tier: case.ledger.budget[tier] + _GIB}
            yield _gain(f"one more GiB of {tier}", replace(case, ledger=Ledger(budget, case.ledger.taken)), best)
    for name, link in case.machine.links.items():
        if best.predicted.lanes.get(name, 0.0) > 0:
            links = {**case.machine.links, name: replace(link, bytes_per_s=2 * link.bytes_per_s)}
            yield _gain(f"{name} twice as fast", replace(case, machine=replace(case.machine, links=links)), best)


def _gain(change: str, case: Case, best: Candidate) -> Gain:
    """Placed and sketched again: with the best cut as it was, and with the cuts beside it that have more rows."""
    search = Search(case)
    found = max(search.wider(best.placement), key=search.worth)
    return Gain(change, max(best.predicted.total_tok_s, _speed(found, best)), found.placement.policy.rows)


def _speed(other: Candidate, best: Candidate) -> float:
    """tok/s of another way beside the best plan.

    The best was run virtually, most others only sketched. Sketches promise a little more or less than runs, with KV
    elsewhere by several percent: so what a sketch says is scaled by what the best one's run made of its own sketch.
    """
    return other.predicted.total_tok_s * (best.bias if other.sketched else 1.0)


def runners_up(case: Case, search: Search, ranked: Sequence[Candidate]) -> Iterator[Alternative]:
    """The next best cut, and the ways that other engines go."""
    best = ranked[0]
    for candidate in ranked[1:2]:
        policy = candidate.placement.policy
        name = f"{policy.rows} rows, {policy.sweep_tokens} tokens a sweep in calls of {policy.batch_tokens}"
        yield _alternative(name, candidate, best)
    policy = best.placement.policy
    batch = policy.batch_tokens
    ways: list[tuple[str, Asked]] = [
        ("one micro-batch per sweep", replace(case.asked, rows=min(policy.rows, batch), sweep_tokens=batch)),
        ("single-layer paging (no overlap)", replace(case.asked, slots=1)),
    ]
    everything = Shares.from_mapping({"cpu": 1.0})
    if case.compute == "cpu":
        ways.append(("all on the cpu", replace(case.asked, weights=everything)))
    for name, asked in ways:
        if asked.batch_size is not None:
            asked = replace(asked, rows=None)
        try:
            yield _alternative(name, search.run(asked), best)
        except UserError as refusal:
            yield Alternative(name, None, str(refusal))
    yield from static_split(case, best)


def static_split(case: Case, best: Candidate) -> Iterator[Alternative]:
    """Layers that the gpu does not hold are computed by the cpu where they lie; what neither holds runs not at all."""
    name = "static split"
    cpu = case.machine.processors.get("cpu")
    if case.compute != "gpu" or cpu is None:
        yield Alternative(name, None, "there is one processor: all layers are computed in one place anyway")
        return
    use = memory(case, best)["gpu"]
    on_gpu = min(1.0, (use.weights + use.free) / case.shape.page_bytes)
    left = (1 - on_gpu) * case.shape.page_bytes
    if left > case.ledger.free("cpu"):
        yield Alternative(name, None, "what the gpu does not hold does not fit the cpu's memory")
        return
    rows = best.predicted.rows_mean
    rate = cpu.curve(case.shape.arithmetic)
    flops = rows * case.shape.token_flops
    gpu = best.predicted.steady.lanes.get("gpu-compute", 0.0)
    seconds = on_gpu * gpu + (1 - on_gpu) * flops / rate.at(rows)
    yield Alternative(name, rows / seconds, f"the cpu computes {1 - on_gpu:.0%} of the layers: not built yet")


def _alternative(name: str, other: Candidate, best: Candidate) -> Alternative:
    """Why it lost: the lane of its steady sweep that holds it, beside the best plan's."""
    predicted = other.predicted
    sweep = predicted.steady
    lane = max(sweep.lanes, key=lambda lane: sweep.lanes[lane])
    rows = f"{predicted.rows_mean:.0f} rows a sweep of {sweep.seconds:.2g} s"
    if predicted.sweeps > best.predicted.sweeps:
        rows += f", {predicted.sweeps:,} sweeps instead of {best.predicted.sweeps:,}"
    return Alternative(name, _speed(other, best), f"{rows}; {lane} takes {sweep.lanes[lane] / sweep.seconds:.0%}")
