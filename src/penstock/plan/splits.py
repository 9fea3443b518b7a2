"""How many layers the cpu computes beside a gpu, where that is left to the planner."""

from dataclasses import dataclass, replace

from penstock.errors import UserError
from penstock.plan.attended import Found
from penstock.plan.attended import searched as searched_for_attention
from penstock.plan.case import Case
from penstock.plan.promises import Promises
from penstock.plan.search import SKETCHES
from penstock.plan.split_cost import with_turning_point
from penstock.plan.steady import Steady

_PARTS = 8  # of the layers, which are tried first
_TRIED = 2  # numbers of layers that are searched, of those whose closed forms promise most
_WORTH_LEAVING = 0.97  # of what layers on the cpu promise is enough to compute all in one place


@dataclass(frozen=True, slots=True)
class _Ranking:
    """Numbers of layers by what closed forms promise of them."""

    case: Case
    known: dict[int, float]

    def promise(self, layers: int) -> float:
        """What the best cut with so many layers on the cpu is worth; nothing where none fits."""
        if layers not in self.known:
            case = _split(self.case, layers)
            promises = Promises(case, Steady(case))
            estimates = [one for place in promises.places() for one in place.estimates[:1]]
            self.known[layers] = max(map(promises.worth, estimates), default=-float("inf"))
        return self.known[layers]

    def best(self) -> list[int]:
        """The most promising numbers: of eighths, and then of what lies ever closer beside the best."""
        most = self.case.shape.footprint.decoders
        step = max(1, most // _PARTS)
        for layers in {1, *range(step, most + 1, step), most}:
            self.promise(layers)
        while step := step // 2:
            leader = self._ranked()[0]
            for layers in (leader - step, leader + step):
                if 1 <= layers <= most:
                    self.promise(layers)
        return self._ranked()[:_TRIED]

    def _ranked(self) -> list[int]:
        return sorted(self.known, key=lambda layers: self.known[layers], reverse=True)


def searched(case: Case, sketches: int = SKETCHES) -> Found:
    """What is found with layers where the case asks, or on the cpu where it leaves that open and it is better.

    Raises UserError, with the least budget that works, where nothing fits.
    """
    if case.asked.cpu_layers is not None:
        return searched_for_attention(case, sketches)
    whole = replace(case, asked=replace(case.asked, cpu_layers=0))
    if not _may_split(case):
        return searched_for_attention(whole, sketches)
    found: list[Found] = []
    refusals: list[UserError] = []
    for tried in (whole, *(_split(case, layers) for layers in _Ranking(case, {}).best())):
        try:
            found.append(searched_for_attention(tried, sketches))
        except UserError as refusal:
            refusals.append(refusal)
    if not found:
        raise refusals[0]
    splits = [one for one in found if one.best.placement.policy.cpu_layers]
    if not splits or len(splits) == len(found):
        return max(found, key=lambda one: one.worth)
    plain, split = found[0], max(splits, key=lambda one: one.worth)
    better, other = (split, plain) if plain.worth < min(_WORTH_LEAVING * split.worth, split.worth) else (plain, split)
    return replace(better, apart=other.best)


def _split(case: Case, layers: int) -> Case:
    """A case with so many layers on the cpu."""
    asked = replace(case.asked, cpu_layers=layers)
    return replace(case, asked=with_turning_point(asked, case.shape, case.machine))


def _may_split(case: Case) -> bool:
    """Whether the cpu could compute layers beside a gpu, and nothing that is asked stands against it."""
    asked, model = case.asked, case.shape.footprint
    processors = case.compute == "gpu" and "cpu" in case.machine.processors
    free = (asked.kv is None or asked.kv.gpu == 0) and (asked.activations is None or asked.activations.gpu == 1)
    return processors and free and asked.attention != "gpu" and not model.transforms and model.joined is None
