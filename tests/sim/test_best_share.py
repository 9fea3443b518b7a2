import random
from fractions import Fraction

import numpy as np
import pytest
from tests.sim.cases import Limits, random_case, scenario_of, trace_of
from tests.sim.oracle import Bytes, Case, play

from penstock.sim.best_share import best_at_share
from penstock.sim.memories import Duplex, Memories
from penstock.sim.scenario import Scenario
from penstock.sim.simulator import simulate
from penstock.trace.skip_trace import BitTrace, TraceShape


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
    d, d_ff, gb_per_s = 8192, 16384, 10**9
    scenario = Scenario(
        name="seed-003-legacy",
        memories=Memories(4 << 30, 4915 * gb_per_s, 900 * gb_per_s, 900 * gb_per_s, 1900 * gb_per_s, Duplex.SERIAL),
        layers=32,
        attn_bytes=4 * d * d * 2,
        mlp_bytes=2 * d * d_ff * 2,
        kv_bytes=2 * d * 2,
        prefill_tokens=1024,
        decode_tokens=decode_tokens,
        weight_capacity_bytes=10**9,
    )
    shape = TraceShape(1024, decode_tokens, 32)
    nothing_skipped = BitTrace(shape, np.zeros((shape.steps, shape.layers, shape.words), np.uint64))
    run = simulate(scenario, nothing_skipped, "prefer-hbm", "none")
    assert f"{best_at_share(scenario, run):.4f}" == printed
