"""Where attention runs, where nobody said: a search for either place, and the better of both."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from penstock.errors import UserError
from penstock.plan.case import Case
from penstock.plan.search import SKETCHES, Candidate, Search

_WORTH_LEAVING = 0.97  # of what attention beside the gpu promises is enough to attend where layers are computed


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found, best first. other: the best with attention on the other processor, where it was tried.

    apart: likewise the best with layers on the cpu beside a gpu, or without where the best of all has them.
    """

    search: Search
    ranked: Sequence[Candidate]
    other: Candidate | None = None
    apart: Candidate | None = None

    @property
    def best(self) -> Candidate:
        """The best placement."""
        return self.ranked[0]

    @property
    def worth(self) -> float:
        """What that is worth: see Case."""
        return self.search.worth(self.best)


def searched(case: Case, sketches: int = SKETCHES) -> Found:
    """What is found with attention as the case asks, or where it is better.

    Raises UserError, with the least budget that works, where nothing fits.
    """
    if not _may_attend_beside(case):
        search = Search(case)
        return Found(search, search.best(sketches))
    here = Search(case)
    beside = Search(replace(case, asked=replace(case.asked, attention="cpu")), here.outlines)
    found, refusals = [], []
    for search in (here, beside):
        try:
            found.append(Found(search, search.best(sketches)))
        except UserError as refusal:  # beside the gpu nothing need come up to it: it may fit where the other does not
            refusals.append(refusal)
    if not found:
        raise refusals[0]
    if refusals:
        return found[0]
    plain, there = found
    better, other = (there, plain) if plain.worth < min(_WORTH_LEAVING * there.worth, there.worth) else (plain, there)
    return replace(better, other=other.best)


def _may_attend_beside(case: Case) -> bool:
    """Whether the cpu beside a gpu could attend to what rests below it, and nobody decided."""
    asked = case.asked
    elsewhere = asked.kv is None or asked.kv.gpu < 1
    beside = case.compute == "gpu" and "cpu" in case.machine.processors and not case.shape.footprint.transforms
    return beside and elsewhere and asked.attention is None and not asked.cpu_layers
