import random
from fractions import Fraction

import pytest
from tests.sim.cases import Limits, random_case, scenario_of, shipped, trace_of, unskipped
from tests.sim.oracle import play
from tests.sim.oracle_case import Case
from tests.sim.oracle_steps import Bytes

from penstock.sim.best_share import best_at_share
from penstock.sim.simulator import simulate


def step_s(case: Case, step: Bytes) -> Fraction:
    share, read = case.best_share, step.r_h + step.r_e
    hbm_s = (share * read + step.w_h) / case.b_h
    ext_s = (1 - share) * read / min(case.b_r, case.b_int) + Fraction(step.w_e, case.b_w)
    return max(hbm_s, ext_s)


@pytest.mark.parametrize("mode", ["exclusive", "inclusive"])
@pytest.mark.parametrize("seed", range(10))
def test_the_totals_give_the_sum_over_all_steps(seed: int, mode: str) -> None:
    case = random_case(random.Random(seed), Limits(layers=3, prefill=20, decode=10), mode)
    run = simulate(scenario_of(case), trace_of(case), "prefer-hbm", "none", form="numpy")
    expected = sum(step_s(case, step.bytes) for step in play(case, "prefer-hbm", "none").steps)
    assert best_at_share(scenario_of(case), run) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(("decode_tokens", "printed"), [(2048, "12.8578"), (4096, "26.4739")])
def test_what_the_legacy_study_printed_as_the_best(decode_tokens: int, printed: str) -> None:
    scenario = shipped("seed-003-legacy", decode_tokens)
    run = simulate(scenario, unskipped(scenario), "prefer-hbm", "none")
    assert f"{best_at_share(scenario, run):.4f}" == printed
