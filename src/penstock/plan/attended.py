"""Where attention runs, where nobody said: a search for either place, and the better of both."""

from dataclasses import replace

from penstock.errors import UserError
from penstock.plan.case import Case
from penstock.plan.search import SKETCHES, Candidate, Search

_WORTH_LEAVING = 0.97  # of what attention beside the gpu promises is enough to attend where layers are computed


def searched(case: Case, sketches: int = SKETCHES) -> tuple[Search, list[Candidate]]:
    """The search that found the best placement, and what it found, best first.

    Raises UserError, with the least budget that works, where nothing fits.
    """
    search = Search(case)
    if not _may_attend_beside(case):
        return search, search.best(sketches)
    beside = Search(replace(case, asked=replace(case.asked, attention="cpu")), search.outlines)
    try:
        here = search.best(sketches)
    except UserError as refusal:
        try:  # nothing need come up to the gpu there
            return beside, beside.best(sketches)
        except UserError:
            raise refusal from None
    try:
        there = beside.best(sketches)
    except UserError:
        return search, here
    better = search.worth(here[0]) < min(_WORTH_LEAVING * beside.worth(there[0]), beside.worth(there[0]))
    return (beside, there) if better else (search, here)


def _may_attend_beside(case: Case) -> bool:
    """Whether the cpu beside a gpu could attend to what rests below it, and nobody decided."""
    asked = case.asked
    elsewhere = asked.kv is None or asked.kv.gpu < 1
    beside = case.compute == "gpu" and "cpu" in case.machine.processors and not case.shape.footprint.transforms
    return beside and elsewhere and asked.attention is None
