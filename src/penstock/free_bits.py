"""Plans whose weights or KV may take fewer bits: the planner's own choice among several precisions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from penstock.errors import UserError
from penstock.plan.case import worth
from penstock.plan.plan import Plan
from penstock.plan.question import Question
from penstock.planner import Event, make_plan

_NAMES = {"weight_bits": ("weights", "weights as they are"), "kv_bits": ("KV", "KV as it is")}


def plan_of_free_bits(
    model: str, question: Question, free: Mapping[str, Sequence[int]], on_event: Event = lambda event: None
) -> Plan:
    """The best plan with each field of ``free`` (``weight_bits``, ``kv_bits``) as it is or packed in any of its bits.

    One field after the other is settled; the first notes tell what else there was. Raises UserError as ``make_plan``
    does, where nothing fits with any of them.
    """
    notes: list[str] = []
    best: Plan | None = None
    for field, bits in free.items():
        best, refused = None, None
        plans: list[Plan] = []
        for each in (None, *bits):
            try:
                plans.append(make_plan(model, _with(question, field, each), on_event))
            except UserError as error:
                refused = error
        if not plans:
            assert refused is not None
            raise refused  # of the fewest bits, of which the least works
        best = max(plans, key=lambda plan: (plan.fits, _worth(question, plan)))
        question = _with(question, field, getattr(best.policy, field))
        others = [f"{p.predicted.total_tok_s:,.3g} tok/s with {_named(p, field)}" for p in plans if p is not best]
        notes.append(f"{_named(best, field)}: {', '.join(others) if others else 'nothing else fits'}")
    assert best is not None
    return replace(best, notes=(*notes, "penstock eval measures what packing costs in quality", *best.notes))


def _with(question: Question, field: str, bits: int | None) -> Question:
    return replace(question, **{field: bits})  # type: ignore[arg-type]  # of a field's name no type is known


def _worth(question: Question, plan: Plan) -> float:
    aim = question.objective == "latency", question.most_sweep_s
    return worth(*aim, plan.predicted.steady.seconds, plan.predicted.total_tok_s)


def _named(plan: Plan, field: str) -> str:
    (name, plain), bits = _NAMES[field], getattr(plan.policy, field)
    return plain if bits is None else f"{name} in {bits} bits"
