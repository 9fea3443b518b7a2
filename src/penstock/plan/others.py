"""The ways that a plan was preferred to: the next best cut, and those that other engines go."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from penstock.errors import UserError
from penstock.machine.machine import Processor
from penstock.plan.attended import Found
from penstock.plan.case import Case
from penstock.plan.gains import speed_beside
from penstock.plan.plan import Alternative
from penstock.plan.policy import Shares
from penstock.plan.search import Candidate, Search
from penstock.plan.split_cost import with_turning_point
from penstock.plan.types import Asked
from penstock.plan.uses import memory

_TOKENS = 256  # of a call, where arithmetics are compared


def runners_up(found: Found) -> Iterator[Alternative]:
    """The next best cut, attention elsewhere, and the ways that other engines go."""
    best, search, case = found.best, found.search, found.search.case
    for candidate in found.ranked[1:2]:
        policy = candidate.placement.policy
        name = f"{policy.rows} rows, {policy.sweep_tokens} tokens a sweep in calls of {policy.batch_tokens}"
        yield _alternative(name, candidate, best)
    if found.other is not None and _attends_away(case, (best, found.other)):
        place = found.other.placement.policy.attention or case.compute
        yield _alternative(f"attention on the {place}", found.other, best)
    policy = best.placement.policy
    batch = policy.batch_tokens
    ways: list[tuple[str, Asked]] = [
        ("one micro-batch per sweep", replace(case.asked, rows=min(policy.rows, batch), sweep_tokens=batch)),
        ("single-layer paging (no overlap)", replace(case.asked, slots=1)),
    ]
    for name, asked in ways:
        if asked.batch_size is not None:
            asked = replace(asked, rows=None)
        yield _tried(name, search, asked, best)
    yield all_on_cpu(case, best)
    if found.apart is not None:
        layers = found.apart.placement.policy.cpu_layers
        number = "1 layer" if layers == 1 else f"{layers} layers"
        yield _alternative(f"{number} on the cpu" if layers else "all layers on the gpu", found.apart, best)
    elif not policy.cpu_layers:
        yield static_split(search, best)


def _attends_away(case: Case, candidates: Sequence[Candidate]) -> bool:
    """Whether any of them keeps KV below the compute tier, so that it matters where attention runs."""
    return any(one.placement.policy.kv.of(case.compute) < 1 for one in candidates)


def all_on_cpu(case: Case, best: Candidate) -> Alternative:
    """Everything in the cpu's memory, computed there, in the fastest arithmetic that it has for these weights."""
    name, cpu = "all on the cpu", case.machine.processors.get("cpu")
    if cpu is None:
        return Alternative(name, None, f"nothing is known of what {case.machine.name}'s cpu computes")
    machine = replace(
        case.machine,
        memory={tier: nbytes for tier, nbytes in case.machine.memory.items() if tier != "gpu"},
        processors={"cpu": cpu},
    )
    here = Shares(cpu=1.0)
    alone = replace(
        case,
        shape=replace(case.shape, arithmetic=_fastest(cpu, case.shape.arithmetic)),
        machine=machine,
        ledger=replace(case.ledger, budget={t: n for t, n in case.ledger.budget.items() if t != "gpu"}),
        asked=replace(case.asked, weights=here, kv=here, activations=None, attention=None, cpu_layers=0),
    )
    return _tried(name, Search(alone), alone.asked, best)


def static_split(search: Search, best: Candidate) -> Alternative:
    """The layers that the gpu does not hold beside this cut computed by the cpu, with all KV there."""
    name, case = "static split", search.case
    if case.compute != "gpu" or "cpu" not in case.machine.processors:
        return Alternative(name, None, "there is one processor: all layers are computed in one place anyway")
    policy, gpu = best.placement.policy, memory(case, best.placement)["gpu"]
    left = 1 - min(1.0, (gpu.weights + gpu.kv + gpu.free) / (case.shape.page_bytes or 1))
    layers = max(1, math.ceil(left * case.shape.footprint.decoders))
    asked = replace(case.asked, weights=None, kv=None, attention=None, activations=None, cpu_layers=layers)
    asked = replace(with_turning_point(asked, case.shape, case.machine), slots=policy.slots)
    if asked.batch_size is None:
        asked = replace(asked, rows=policy.rows, sweep_tokens=policy.sweep_tokens, batch_tokens=policy.batch_tokens)
    found = _tried(name, Search(replace(case, asked=asked)), asked, best)
    return replace(found, why=f"--compute-cpu-layers {layers}: {found.why}") if found.tok_s is not None else found


def _fastest(cpu: Processor, arithmetic: str) -> str:
    """Of the arithmetics for weights that are stored as this one's, the one that a cpu has the highest rate in."""
    stored = arithmetic.rpartition("<")[2]
    known = [name for name in cpu.products if name.rpartition("<")[2] == stored]
    return max(known, key=lambda name: cpu.products[name].at(_TOKENS), default=arithmetic)


def _tried(name: str, search: Search, asked: Asked, best: Candidate) -> Alternative:
    try:
        return _alternative(name, search.run(asked), best)
    except UserError as refusal:
        return Alternative(name, None, str(refusal))


def _alternative(name: str, other: Candidate, best: Candidate) -> Alternative:
    """Why it lost: the lane of its steady sweep that holds it, beside the best plan's."""
    predicted = other.predicted
    sweep = predicted.steady
    lane = max(sweep.lanes, key=lambda lane: sweep.lanes[lane])
    rows = f"{predicted.rows_mean:.0f} rows a sweep of {sweep.seconds:.2g} s"
    if predicted.sweeps > best.predicted.sweeps:
        rows += f", {predicted.sweeps:,} sweeps instead of {best.predicted.sweeps:,}"
    return Alternative(name, speed_beside(other, best), f"{rows}; {lane} takes {sweep.lanes[lane] / sweep.seconds:.0%}")
