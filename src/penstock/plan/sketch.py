"""Jobs in outline, for a search, which tries many cuts of the work."""

from collections.abc import Iterator

from penstock.plan.case import Case
from penstock.plan.plan import Prediction
from penstock.plan.sketch_prices import Outline
from penstock.plan.sketch_rows import SketchedRow
from penstock.plan.sketch_run import SketchRun
from penstock.plan.split_cost import Cost, cost_of
from penstock.plan.types import Placement
from penstock.plan.virtual import hidden_tokens, in_part, rows_shown

_FILLINGS = 2  # times the fillings of a virtual run: of few waves of rows, one more or less makes much of a difference


class Outlines:
    """Runs of a case's job in outline, each made once.

    They are the same wherever pages rest and however fast the machine is.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self._made: dict[tuple[object, ...], Outline] = {}

    def of(self, placement: Placement, count: int) -> Outline:
        """The sweeps of the first so many rows."""
        policy = placement.policy
        key = (policy.rows, policy.sweep_tokens, policy.batch_tokens, policy.kv, *placement.kv.items(), count)
        if key not in self._made:
            self._made[key] = SketchRun(self.case, placement, self._rows(count)).run()
        return self._made[key]

    def _rows(self, count: int) -> Iterator[tuple[int, SketchedRow]]:
        """Rows in the order in which they ask for room, with what they may generate."""
        for one, shared in zip(self.case.lengths[:count], self.case.shared, strict=False):
            yield one.most or one.generated, SketchedRow(one.prompt, one.prompt, one.generated, shared)


class Sketch:
    """Sketches runs of a case's job."""

    def __init__(self, case: Case, outlines: Outlines | None = None) -> None:
        self.case = case
        self._outlines = outlines or Outlines(case)
        self._costs: dict[tuple[object, ...], Cost] = {}

    def predict(self, placement: Placement) -> Prediction:
        """What becomes of the job; of a long one only a part is run, as a virtual run does."""
        lengths = self.case.lengths
        shown = _FILLINGS * rows_shown(self.case, placement, lengths, 0)
        return in_part(lambda count: self.part(placement, count), shown, len(lengths))

    def part(self, placement: Placement, count: int) -> Prediction:
        """What becomes of the first so many rows."""
        case, outline, cost = self.case, self._outlines.of(placement, count), self._cost_of(placement)
        hidden = hidden_tokens(case.shape, case.machine, cost.held)
        return outline.prediction(cost, hidden)

    def _cost_of(self, placement: Placement) -> Cost:
        """Prices are kept for placements that differ only in what no sweep's price depends on."""
        policy = placement.policy
        key = (placement.homes, policy.slots, policy.kv, policy.cpu_layers and policy.most_in_place)
        if key not in self._costs:
            self._costs[key] = cost_of(self.case.shape, self.case.machine, policy, placement.homes)
        return self._costs[key]
