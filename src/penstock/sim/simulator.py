"""Replays a scenario's decode under placement and migration policies."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from penstock.errors import UserError
from penstock.sim import registry
from penstock.sim.belady import BeladyForm
from penstock.sim.initial import InitialState, initial_state
from penstock.sim.kernel_state import fits_int64, given
from penstock.sim.ledger import Ledger, StepBatch, StepSink
from penstock.sim.migrations import Belady
from penstock.sim.numpy_form import NumpyForm
from penstock.sim.pair import Pair
from penstock.sim.policy import MigrationPolicy, PlacementPolicy
from penstock.sim.result import Run
from penstock.sim.scenario import Scenario
from penstock.sim.user_policy import UserMigration, UserPlacement
from penstock.sim.windows import Window, open_windows
from penstock.trace.skip_trace import SkipTrace, TraceShape

if TYPE_CHECKING:
    from penstock.sim.kernel_form import KernelForm

__all__ = ["StepBatch", "StepSink", "simulate", "simulate_many"]

FormName = Literal["auto", "kernels", "numpy"]
Policies = tuple[str | PlacementPolicy, str | MigrationPolicy]
Form: TypeAlias = "NumpyForm | KernelForm | BeladyForm"


@dataclass
class _Lane:
    """A pair on its way through the trace."""

    pair: Pair
    form: Form
    ledger: Ledger


_Together = list[_Lane]  # pairs that are one run so far: the first is replayed for all, and they share its ledger


def simulate(
    scenario: Scenario,
    trace: SkipTrace,
    placement: str | PlacementPolicy,
    migration: str | MigrationPolicy,
    *,
    budget_slack: bool = False,
    form: FormName = "auto",
    each_step: StepSink | None = None,
) -> Run:
    """Replay one pair of policies, named with their options (`alpha:target=0.9`, `look-ahead-layer:budget=slack`).

    `form` chooses compiled kernels or plain numpy, which count the same; `each_step` receives every step in full.
    Raises UserError for weights that do not fit, a trace of another shape, and policies or options that do not exist.
    """
    pairs = [(placement, migration)]
    return simulate_many(scenario, trace, pairs, budget_slack=budget_slack, form=form, each_step=each_step)[0]


def simulate_many(
    scenario: Scenario,
    trace: SkipTrace,
    pairs: Iterable[Policies],
    *,
    budget_slack: bool = False,
    form: FormName = "auto",
    each_step: StepSink | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Run]:
    """Replay several pairs in one pass over the trace; the runs are in the order of the pairs.

    `each_step` is for a single pair. `progress` is told how many token steps have just been replayed for all pairs.
    Raises UserError as `simulate` does.
    """
    made = [registry.pair(*policies, budget_slack=budget_slack) for policies in pairs]
    if each_step is not None and len(made) != 1:
        raise ValueError(f"each_step for {len(made)} pairs: their steps could not be told apart")
    _check(scenario, trace.shape)
    start = initial_state(scenario)
    lanes = [
        _Lane(pair, _form(form, scenario, start, pair, trace), Ledger(scenario, start, each_step)) for pair in made
    ]
    back, ahead = max((pair.back for pair in made), default=0), max((pair.ahead for pair in made), default=0)
    groups = _groups(lanes)
    for window in open_windows(trace, back, ahead):
        groups = [left for group in groups for left in _advance(group, window)]
        if progress is not None:
            progress(window.steps)
    return [lane.ledger.run(lane.pair) for lane in lanes]


def _groups(lanes: Sequence[_Lane]) -> list[_Together]:
    """Pairs that differ in their placements alone, which have had no say yet; those of a group share an account."""
    groups: dict[object, _Together] = {}
    for lane in lanes:
        alone = isinstance(lane.form, NumpyForm | BeladyForm)
        key = id(lane) if alone else (lane.pair.migration, lane.pair.budget_slack)
        together = groups.setdefault(key, [])
        together.append(lane)
        lane.ledger = together[0].ledger
    return list(groups.values())


def _advance(group: _Together, window: Window) -> list[_Together]:
    """Replay a window for pairs that are one run so far; they part in the first one where their placements count."""
    first, *others = group
    if others:
        cast("KernelForm", others[0].form).copy_state(cast("KernelForm", first.form))
    counts, items = first.form.advance(window)
    part = bool(others) and not cast("KernelForm", first.form).undecided
    if part:
        before = deepcopy(first.ledger)
        for other in others:
            other.ledger = before
    first.ledger.add(window.first, counts, items)
    return [[first], *_advance(others, window)] if part else [group]


def _form(name: FormName, scenario: Scenario, start: InitialState, pair: Pair, trace: SkipTrace) -> Form:
    """The form asked for, or the faster one that can run the pair; Belady has one of its own."""
    reason = "" if name == "numpy" else _why_no_kernels(scenario, start, pair)
    if name == "kernels" and reason:
        raise UserError(f"{reason}: leave the form to choice, or ask for numpy")
    if isinstance(pair.migration, Belady):
        return BeladyForm(scenario, start, trace)
    if name == "numpy" or reason:
        return NumpyForm(scenario, start, pair)
    from penstock.sim.kernel_form import KernelForm  # imports numba, which may be missing

    return KernelForm(scenario, start, pair)


def _why_no_kernels(scenario: Scenario, start: InitialState, pair: Pair) -> str:
    """Why compiled kernels cannot run a pair; empty where they can."""
    for policy, name in ((pair.placement, pair.placement_name), (pair.migration, pair.migration_name)):
        if isinstance(policy, UserPlacement | UserMigration | Belady):
            return f"{name} has no kernel"
    if find_spec("numba") is None:
        return "numba is not installed"
    if not fits_int64(scenario, given(scenario, start, pair)):
        return "the kernels' 64-bit integers cannot compare bandwidths and bytes of this size exactly"
    return ""


def _check(scenario: Scenario, shape: TraceShape) -> None:
    """Raise UserError where the trace is another run's."""
    for what, have, want in (
        ("prefill tokens", shape.prefill_tokens, scenario.prefill_tokens),
        ("decode steps", shape.steps, scenario.decode_tokens),
        ("layers", shape.layers, scenario.layers),
    ):
        if have != want:
            raise UserError(
                f"the trace has {have} {what} and the scenario {scenario.name} has {want}: "
                "record or make a trace of the scenario's shape, or set the scenario's to the trace's"
            )
