"""Both forms of the simulator against the oracle, to the byte: every policy and option, on whatever the page allows."""

import random
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from tests.sim.cases import COMMON, Limits, random_case, scenario_of, trace_of
from tests.sim.oracle import play
from tests.sim.oracle_case import Case
from tests.sim.oracle_steps import Account, Bytes

from penstock.sim.result import BINDING, Run
from penstock.sim.simulator import FormName, StepBatch, simulate

Policy = tuple[str, dict[str, Any]]

PLACEMENTS: list[Policy] = [
    ("prefer-hbm", {}),
    ("split-token", {}),
    ("split-token", {"rotated": True}),
    ("batch-ratio", {}),
    ("look-ahead-batch", {}),
    ("look-ahead-batch", {"rule": "any", "window": 3}),
    ("look-ahead-batch", {"rule": "all", "window": 2}),
    ("layer-importance", {}),
    ("layer-importance", {"window": 3}),
    ("alpha-layers", {}),
]
MIGRATIONS: list[Policy] = [
    ("none", {}),
    ("prior", {}),
    ("prior", {"count": 2}),
    ("skipped-tokens", {}),
    ("skipped-tokens", {"layers": "all"}),
    ("past-window", {}),
    ("past-window", {"rule": "all", "window": 4}),
    ("look-ahead", {}),
    ("look-ahead", {"room": True}),
    ("look-ahead-batch", {}),
    ("look-ahead-batch", {"window": 3, "room": True}),
    ("look-ahead-layer", {}),
    ("look-ahead-layer", {"room": True}),
    ("look-ahead-batch-layer", {"window": 2}),
    ("look-ahead-batch-layer", {"room": True}),
    ("alpha", {}),
    ("alpha", {"window": 5}),
    ("alpha", {"target": Fraction(3, 10)}),
    ("alpha", {"target": Fraction(1), "window": 2}),
    ("lru", {}),
]
KINDS = tuple(Bytes.__dataclass_fields__)


def written(policy: Policy) -> str:
    """A policy as it is written on the command line."""
    name, options = policy
    return name + (":" if options else "") + ",".join(f"{key}={str(options[key]).lower()}" for key in options)


class Steps:
    """All steps of a run, flat, in their order."""

    def __init__(self) -> None:
        self.bytes: list[list[int]] = []
        self.time_s: list[float] = []
        self.binding: list[str] = []

    def __call__(self, batch: StepBatch) -> None:
        self.bytes += batch.bytes_by_kind.reshape(-1, len(KINDS)).tolist()
        self.time_s += batch.time_s.ravel().tolist()
        self.binding += [BINDING[i] for i in batch.binding.ravel()]


def assert_same_steps(expected: Account, found: Steps) -> None:
    for step, have, time_s, binding in zip(expected.steps, found.bytes, found.time_s, found.binding, strict=True):
        where = (step.n, step.layer, step.sublayer)
        assert (where, dict(zip(KINDS, have, strict=True))) == (where, vars(step.bytes))
        assert (where, time_s, binding) == (where, step.time_s, step.binding)


def assert_same_sums(case: Case, expected: Account, run: Run) -> None:
    steps = expected.steps
    assert list(vars(run.traffic).values()) == [sum(getattr(step.bytes, kind) for step in steps) for kind in KINDS]
    assert run.kv_read == case.kv_bytes * sum(step.kv_read for step in steps)
    assert run.peak_hbm_bytes == expected.peak_bytes
    assert run.time_s == pytest.approx(sum(step.time_s for step in steps), rel=1e-12)
    for name, seconds in zip(BINDING, run.binding_s, strict=True):
        assert seconds == pytest.approx(sum(step.time_s for step in steps if step.binding == name), rel=1e-12)
    shares = [step.bytes.r_h / (step.bytes.r_h + step.bytes.r_e) for step in steps if step.bytes.r_h + step.bytes.r_e]
    assert run.alpha_steps == len(shares)
    assert run.alpha_sum == pytest.approx(sum(shares), rel=1e-12)
    per_token = 2 * case.layers
    assert run.series.hbm_items.tolist() == [step.hbm_items for step in steps[per_token - 1 :: per_token]]


def forms(case: Case) -> tuple[FormName, FormName]:
    """Both, where the kernels' integers can compare the case's bandwidths exactly."""
    return "numpy", "kernels" if case.b_h % COMMON == 0 else "auto"


def compare(seed: str, placement: Policy | None, migration: Policy | None, **changes: Any) -> None:
    rng = random.Random(seed)
    limits = Limits() if rng.random() < 0.1 else Limits(layers=3, prefill=16, decode=10)
    case = replace(random_case(rng, limits), **changes)
    placement, migration = placement or rng.choice(PLACEMENTS), migration or rng.choice(MIGRATIONS)
    slack = rng.random() < 0.4
    expected = play(case, placement[0], migration[0], placement[1], migration[1], slack)
    for form in forms(case):
        steps = Steps()
        run = simulate(
            scenario_of(case),
            trace_of(case),
            written(placement),
            written(migration),
            budget_slack=slack,
            form=form,
            each_step=steps,
        )
        assert_same_steps(expected, steps)
        assert_same_sums(case, expected, run)


@pytest.mark.parametrize("seed", range(20))
def test_belady_keeps_what_the_page_says(seed: int) -> None:
    case = random_case(random.Random(seed), Limits(layers=3, prefill=20, decode=12))
    expected, steps = play(case, "prefer-hbm", "belady"), Steps()
    run = simulate(scenario_of(case), trace_of(case), "prefer-hbm", "belady", each_step=steps)
    assert_same_steps(expected, steps)
    assert_same_sums(case, expected, run)


@pytest.mark.parametrize("migration", MIGRATIONS, ids=written)
@pytest.mark.parametrize("seed", range(8))
def test_migrations_move_the_bytes_that_the_page_says(migration: Policy, seed: int) -> None:
    compare(f"{written(migration)} {seed}", None, migration)


@pytest.mark.parametrize("placement", PLACEMENTS, ids=written)
@pytest.mark.parametrize("seed", range(4))
def test_placements_place_what_the_page_says(placement: Policy, seed: int) -> None:
    compare(f"{written(placement)} {seed}", placement, None)


@pytest.mark.parametrize("migration", [m for m in MIGRATIONS if m[0].startswith(("look", "alpha"))], ids=written)
@pytest.mark.parametrize("seed", range(6))
def test_passive_installs_follow_what_a_migration_brings_in(migration: Policy, seed: int) -> None:
    compare(f"passive {written(migration)} {seed}", None, migration, passive="all")
