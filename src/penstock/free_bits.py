"""Plans whose weights may take fewer bits: the planner's own choice among several precisions."""

from collections.abc import Sequence
from dataclasses import replace

from penstock.errors import UserError
from penstock.plan.case import worth
from penstock.plan.plan import Plan
from penstock.plan.question import Question
from penstock.planner import Event, make_plan


def plan_of_free_bits(
    model: str, question: Question, bits: Sequence[int], on_event: Event = lambda event: None
) -> Plan:
    """The best plan with the layers' weights as they are or packed in any of ``bits``; its first note tells the others.

    Raises UserError as ``make_plan`` does, where nothing fits with any of them.
    """
    plans: list[Plan] = []
    refusal: UserError | None = None
    for each in (None, *bits):
        try:
            plans.append(make_plan(model, replace(question, weight_bits=each), on_event))
        except UserError as error:
            refusal = error
    if not plans:
        assert refusal is not None
        raise refusal  # of the fewest bits, of which the least works
    best = max(plans, key=lambda plan: (plan.fits, _worth(question, plan)))
    others = [f"{plan.predicted.total_tok_s:,.3g} tok/s with {_named(plan)}" for plan in plans if plan is not best]
    beside = ", ".join(others) if others else "nothing else fits"
    told = f"{_named(best)}: {beside}; penstock eval measures what packing costs in quality"
    return replace(best, notes=(told, *best.notes))


def _worth(question: Question, plan: Plan) -> float:
    aim = question.objective == "latency", question.most_sweep_s
    return worth(*aim, plan.predicted.steady.seconds, plan.predicted.total_tok_s)


def _named(plan: Plan) -> str:
    bits = plan.policy.weight_bits
    return "weights as they are" if bits is None else f"weights in {bits} bits"
