"""Plans whose weights or KV may take fewer bits: the planner's own choice among several precisions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from penstock.errors import UserError
from penstock.plan.case import worth
from penstock.plan.plan import Plan
from penstock.plan.question import Question
from penstock.planner import Event, make_plan

_NAMES = {"weight_bits": "weights", "kv_bits": "KV"}


def plan_of_free_bits(
    model: str, question: Question, free: Mapping[str, Sequence[int]], on_event: Event = lambda event: None
) -> Plan:
    """The best plan with each field of ``free`` (``weight_bits``, ``kv_bits``) as it is or packed in any of its bits.

    Its first note tells what the others would do. Raises UserError as ``make_plan`` does, where nothing fits with any
    of them.
    """
    plans: list[Plan] = []
    refusal: UserError | None = None
    for bits in product(*((None, *choices) for choices in free.values())):
        asked = replace(question, **dict(zip(free, bits, strict=True)))  # type: ignore[arg-type]  # fields by name
        try:
            plans.append(make_plan(model, asked, on_event))
        except UserError as error:
            refusal = error
    if not plans:
        assert refusal is not None
        raise refusal  # of the fewest bits, of which the least works
    best = max(plans, key=lambda plan: (plan.fits, _worth(question, plan)))
    others = [f"{p.predicted.total_tok_s:,.3g} tok/s with {_named(p, free)}" for p in plans if p is not best]
    beside = ", ".join(others) if others else f"nothing else is possible ({refusal})"
    told = f"{_named(best, free)}: {beside}; penstock eval measures what packing costs in quality"
    return replace(best, notes=(told, *best.notes))


def _worth(question: Question, plan: Plan) -> float:
    aim = question.objective == "latency", question.most_sweep_s
    return worth(*aim, plan.predicted.steady.seconds, plan.predicted.total_tok_s)


def _named(plan: Plan, fields: Mapping[str, Sequence[int]]) -> str:
    said = []
    for field in fields:
        bits = getattr(plan.policy, field)
        said.append(f"{_NAMES[field]} as before" if bits is None else f"{_NAMES[field]} in {bits} bits")
    return " and ".join(said)
