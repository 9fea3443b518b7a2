"""Bits that are left to the planner: what a plan, or a run, is with each of them, and which is the fastest."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from penstock.bits import Bits
from penstock.blueprints import Blueprints
from penstock.engine.build import Blueprint
from penstock.engine.warming import warm
from penstock.errors import UserError
from penstock.model.packing import packing_of
from penstock.placing import Placing
from penstock.plan.case import worth
from penstock.plan.plan import Plan
from penstock.plan.question import Question
from penstock.plan.types import Asked, Job
from penstock.planner import Event, computing_on, host_machine, make_plan, page_cache_bytes
from penstock.runtime import Runtime

_EVAL = "penstock eval measures what packing costs in quality"

Made = TypeVar("Made")


def plan_of_free_bits(model: str, question: Question, bits: Bits, on_event: Event = lambda event: None) -> Plan:
    """The best plan with what ``bits`` leaves free as it is or packed in any of its bits.

    Its first note tells what the others would do. Raises UserError as ``make_plan`` does, where nothing fits with any
    of them.
    """

    def planned(choice: Bits) -> Plan:
        asked = replace(question, weight_bits=choice.weight_bits, kv_bits=choice.kv_bits)
        return make_plan(model, asked, on_event)

    plans, refusal = _each(bits, planned)
    chosen, best = max(plans, key=lambda made: (made[1].fits, _worth(question, made[1])))
    others = [
        f"{_rate(plan.predicted.total_tok_s)} with {choice.said(bits.free)}"
        for choice, plan in plans
        if plan is not best
    ]
    beside = ", ".join(others) if others else f"nothing else is possible ({refusal})"
    return replace(best, notes=(f"{chosen.said(bits.free)}: {beside}; {_EVAL}", *best.notes))


def bits_of_run(
    bits: Bits, unpacked: Blueprint, model: Blueprints, asked: Asked, job: Job, runtime: Runtime
) -> tuple[Bits, str]:
    """What is left to the planner, as a run of a job is fastest, and one line that says what it gains.

    This host is measured where it never was. Raises UserError where nothing fits with any of them, and where this host
    cannot be measured.
    """
    compute, root, disk = runtime.device.compute_tier, runtime.offload_root, runtime.budgets.asked["disk"]
    try:
        computing_on(compute, host_machine(unpacked, root, runtime.event, runtime.ledger(0)))
    except UserError as refusal:
        raise UserError(f"auto cannot be decided: {refusal}, or give numbers of bits") from refusal

    def tok_s(choice: Bits) -> float:
        made = model.packed(packing_of(choice))
        cached = page_cache_bytes(made, disk)
        placing = Placing(made, asked, None, compute, root, runtime.event)
        # as the run will, before it counts its memory
        warm(made, runtime.device.torch_device, placing.attention, placing.may_split)
        placement = placing.choose(job, lambda: runtime.ledger(cached, job.held))
        predicted = placing.predict(placement, job, runtime.ledger(cached, job.held).budget)
        return predicted.total_tok_s if predicted is not None else 0.0  # a prompt fits nowhere, which the run will say

    speeds, _ = _each(bits, tok_s)
    chosen, fastest = max(speeds, key=lambda made: made[1])
    told = f"auto: {chosen.said(bits.free)}, {_rate(fastest)} planned"
    as_is = [speed for choice, speed in speeds if not choice.packs(bits.free)]
    if not as_is:
        return chosen, f"{told}, where unpacked nothing fits; {_EVAL}"
    if not chosen.packs(bits.free):
        return chosen, f"{told}, and no more with fewer bits"
    return chosen, f"{told} instead of {_rate(as_is[0])} as before; {_EVAL}"


def _each(bits: Bits, make: Callable[[Bits], Made]) -> tuple[list[tuple[Bits, Made]], UserError | None]:
    """What can be made of each choice, and the last refusal; that is raised where nothing can."""
    made: list[tuple[Bits, Made]] = []
    refusal: UserError | None = None
    for choice in bits.choices():
        try:
            made.append((choice, make(choice)))
        except UserError as error:
            refusal = error  # the last is of the fewest bits, of which the least works
    if not made and refusal is not None:
        raise refusal
    return made, refusal


def _worth(question: Question, plan: Plan) -> float:
    aim = question.objective == "latency", question.most_sweep_s
    return worth(*aim, plan.predicted.steady.seconds, plan.predicted.total_tok_s)


def _rate(tok_s: float) -> str:
    """Three digits, and whole numbers from a hundred on."""
    return f"{tok_s:,.0f} tok/s" if tok_s >= 100 else f"{tok_s:.3g} tok/s"
