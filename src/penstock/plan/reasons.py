"""Plans with everything that is said of them: the best of a search, one that a run would make, one that was given."""

from collections.abc import Sequence
from dataclasses import replace

from penstock.machine.machine import Machine
from penstock.plan.attended import Found
from penstock.plan.case import Case
from penstock.plan.gains import duals, gains
from penstock.plan.others import runners_up
from penstock.plan.plan import Plan
from penstock.plan.search import Candidate, Search
from penstock.plan.sketch import Sketch
from penstock.plan.splits import searched
from penstock.plan.types import Placement
from penstock.plan.uses import memory
from penstock.plan.virtual import VirtualRun
from penstock.units import format_bytes


def explain(case: Case, machine: Machine, job: str) -> Plan:
    """The best plan of a case. Raises UserError where nothing fits."""
    return _explained(machine, job, searched(case))


def decided(case: Case, machine: Machine, job: str, placement: Placement) -> Plan:
    """A placement that the rule decided, as it would be run."""
    search = Search(case)
    placement = replace(placement, policy=case.extended(placement.policy))
    if placement.policy.admission == "static":
        found = Candidate(placement, VirtualRun(case, placement).predict(case.lengths), sketched=False)
    else:
        found = search.whole(Candidate(placement, Sketch(case, search.outlines).predict(placement)))
    return _explained(machine, job, Found(search, [found]))


def priced(case: Case, machine: Machine, job: str, placement: Placement, notes: Sequence[str] = ()) -> Plan:
    """A placement as it was given, whether it fits or not, with what it would do if it did."""
    # new KV is where it is written only while its layer is computed, so none of it stays there between sweeps
    room, newest = dict(placement.kv), placement.policy.kv_tier(case.compute)
    room[newest] = room.get(newest, 0) + 2 * sum(room.values())
    predicted = VirtualRun(case, replace(placement, kv=room)).predict(case.lengths)
    plan = Plan(
        model=case.shape.name,
        machine=machine.name,
        job=job,
        policy=placement.policy,
        memory=memory(case, placement),
        predicted=predicted,
        placement=placement,
        notes=tuple(notes),
    )
    if plan.fits:
        return plan
    short = " and ".join(f"{format_bytes(use.short)} of {tier}" for tier, use in plan.memory.items() if use.short)
    return replace(plan, placement=None, why_not=f"it is short of {short}")


def _explained(machine: Machine, job: str, found: Found) -> Plan:
    """The first of some candidates, what would help it, and what it was preferred to."""
    best, search, case = found.best, found.search, found.search.case
    return Plan(
        model=case.shape.name,
        machine=machine.name,
        job=job,
        policy=best.placement.policy,
        memory=memory(case, best.placement),
        predicted=best.predicted,
        placement=best.placement,
        duals=duals(case, search, best),
        gains=tuple(gains(search, best, found.apart is not None and best.placement.policy.cpu_layers > 0)),
        runners_up=tuple(runners_up(found)),
        curve=tuple(search.curve(best.placement.policy.kv)),
    )
