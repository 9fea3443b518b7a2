"""What a better machine would do for a job: the plan solved again with more memory or a faster link."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from penstock.errors import UserError
from penstock.plan.case import Case
from penstock.plan.grid import cut_of
from penstock.plan.plan import Gain
from penstock.plan.policy import TIERS, Shares, Tier
from penstock.plan.search import Candidate, Search

_GIB = 1 << 30


def duals(case: Case, search: Search, best: Candidate) -> Mapping[str, float]:
    """tok/s that one more byte of a tier, or byte per second of a link, buys, by the linear program at the plan."""
    estimate = search.steady.placed(cut_of(best.placement.policy))
    if estimate is None or estimate.optimum is None or not estimate.optimum.seconds:
        return {}
    found, speed = estimate.optimum, best.predicted.total_tok_s
    per_second = speed / found.seconds
    bytes_worth: dict[str, float] = {tier: per_second * dual for tier, dual in found.byte_duals.items()}
    for name, link in case.machine.links.items():
        bytes_worth[name] = per_second * found.lane_duals.get(name, 0.0) * found.lanes.get(name, 0.0) / link.bytes_per_s
    return {name: worth for name, worth in bytes_worth.items() if worth > 0}


def gains(search: Search, best: Candidate, free_layers: bool = False) -> Iterator[Gain]:
    """What one more GiB of each tier, and each link twice as fast, would do, searched again.

    free_layers: another number of layers might be computed on the cpu then.
    """
    case = search.case

    def gain(change: str, changed: Case) -> Gain:
        searches = [Search(one, search.outlines) for one in (_with_other_layers(changed) if free_layers else [changed])]
        return _gain(change, searches, best)

    for tier in TIERS:
        if case.ledger.budget.get(tier, 0) <= 0 or (tier == "gpu" and case.compute != "gpu"):
            continue
        change = f"one more GiB of {tier}"
        if tier == "disk" and not _fills_disk(best):
            yield Gain(change, best.predicted.total_tok_s, best.placement.policy.rows)
            continue
        budget: dict[Tier, int] = {**case.ledger.budget, tier: case.ledger.budget[tier] + _GIB}
        yield gain(change, replace(case, ledger=replace(case.ledger, budget=budget)))
    for name, link in case.machine.links.items():
        if best.predicted.lanes.get(name, 0.0) > 0:
            links = {**case.machine.links, name: replace(link, bytes_per_s=2 * link.bytes_per_s)}
            yield gain(f"{name} twice as fast", replace(case, machine=replace(case.machine, links=links)))


def speed_beside(other: Candidate, best: Candidate) -> float:
    """tok/s of another way beside the best plan.

    The best was run virtually, most others only sketched. Sketches promise a little more or less than runs, with KV
    elsewhere by several percent: so what a sketch says is scaled by what the best one's run made of its own sketch.
    """
    return other.predicted.total_tok_s * (best.bias if other.sketched else 1.0)


def _with_other_layers(case: Case) -> Iterator[Case]:
    """A case with as many layers on the cpu as it has, and with those more or fewer that a GiB holds."""
    layers, most = case.asked.cpu_layers or 0, case.shape.footprint.decoders
    step = max(1, round(_GIB * most / case.shape.page_bytes))
    for other in sorted({layers, max(1, layers - step), min(most, layers + step)}):
        yield replace(case, asked=replace(case.asked, cpu_layers=other))


def _gain(change: str, searches: Sequence[Search], best: Candidate) -> Gain:
    """Placed and sketched again: with the best cut as it was, and with the cuts beside it that have more rows."""
    tried = [
        candidate for search in searches for kv in _kv_shares(search, best) for candidate in _wider(search, best, kv)
    ]
    found = max(tried, key=searches[0].worth, default=best)
    return Gain(change, max(best.predicted.total_tok_s, speed_beside(found, best)), found.placement.policy.rows)


def _kv_shares(search: Search, best: Candidate) -> list[Shares | None]:
    """Where KV may rest then: of a plan that has it elsewhere, where it is, and where the linear program puts it."""
    case, resting = search.case, best.placement.policy.kv
    if case.asked.kv is not None or resting.of(case.kv_tier) >= 1:
        return [case.asked.kv]
    estimate = search.steady.placed(cut_of(best.placement.policy))
    return list(dict.fromkeys([resting, *([estimate.kv] if estimate else [])]))


def _wider(search: Search, best: Candidate, kv: Shares | None) -> list[Candidate]:
    try:
        return search.wider(best.placement, kv)
    except UserError:
        return []  # the linear program knows nothing of whole rows: its shares may not hold one


def _fills_disk(best: Candidate) -> bool:
    """Whether anything of the plan takes of the disk's budget."""
    return max(best.placement.policy.kv.disk, best.placement.policy.activations.disk) > 0
