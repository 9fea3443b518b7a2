"""Both forms of the simulator: the same integers, and figures known from elsewhere."""

import itertools
import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from tests.sim.cases import shipped, unskipped

from penstock.errors import UserError
from penstock.sim.ledger import StepBatch
from penstock.sim.memories import Duplex, Memories
from penstock.sim.registry import migrations, placements
from penstock.sim.result import BINDING
from penstock.sim.scenario import Initial, Mode, Passive, Scenario, Start
from penstock.sim.simulator import simulate, simulate_many
from penstock.trace.skip_trace import BitTrace, TraceShape

PLACEMENTS = (
    "prefer-hbm",
    "split-token",
    "split-token:rotated",
    "batch-ratio",
    "look-ahead-batch",
    "look-ahead-batch:window=3,rule=any",
    "look-ahead-batch:window=5,rule=all",
    "layer-importance",
    "layer-importance:window=5",
    "alpha-layers",
)
MIGRATIONS = (
    "none",
    "prior",
    "prior:count=3",
    "skipped-tokens",
    "skipped-tokens:layers=all",
    "past-window:window=4",
    "past-window:window=3,rule=all",
    "look-ahead",
    "look-ahead:room",
    "look-ahead-batch:window=4",
    "look-ahead-batch:window=5,room",
    "look-ahead-layer",
    "look-ahead-layer:room",
    "look-ahead-batch-layer",
    "look-ahead-batch-layer:window=4,room",
    "alpha",
    "alpha:target=0.5",
    "alpha:target=0.9,window=4",
    "lru",
)


def small(rng: random.Random) -> Scenario:
    """A scenario whose HBM holds its weights and some of its items."""
    layers, prefill, decode = rng.randint(1, 4), rng.randint(0, 100), rng.randint(1, 30)
    item = rng.choice([1, 64, 1000])
    attn, mlp = rng.randint(0, 40) * item, rng.randint(0, 80) * item
    memories = Memories(
        layers * (attn + mlp) + int(rng.choice([0.1, 0.5, 0.9, 1.1]) * layers * (prefill + decode) * item) or 1,
        rng.randint(1000, 5000) * 10**6,
        rng.randint(200, 900) * 10**6,
        rng.randint(200, 900) * 10**6,
        rng.randint(300, 1900) * 10**6,
        rng.choice(list(Duplex)),
    )
    fraction = Initial(Start.FRACTION, Fraction(rng.randint(0, 10), 10), Fraction(rng.randint(0, 10), 10))
    return Scenario(
        "small",
        memories,
        layers,
        attn,
        mlp,
        item,
        prefill,
        decode,
        initial=rng.choice([Initial(), Initial(Start.RATIO), fraction]),
        mode=rng.choice(list(Mode)),
        passive=rng.choice(list(Passive)),
        fixed_s=rng.choice([0.0, 1e-9]),
    )


def drawn(scenario: Scenario, rng: random.Random, level: float = 0.4, stay: float = 0.8) -> BitTrace:
    """A trace of sets that keep most of their tokens from step to step."""
    shape = TraceShape(scenario.prefill_tokens, scenario.decode_tokens, scenario.layers)
    draw = np.random.default_rng(rng.randrange(2**32))
    skipped = draw.random((shape.layers, shape.words * 64)) < level
    bits = np.zeros((shape.steps, shape.layers, shape.words), np.uint64)
    for step in range(shape.steps):
        again = draw.random(skipped.shape) >= stay
        skipped = np.where(again, draw.random(skipped.shape) < level, skipped)
        exist = np.arange(skipped.shape[1]) < shape.prefill_tokens + step
        bits[step] = np.packbits(skipped & exist, axis=-1, bitorder="little").view("<u8")
    return BitTrace(shape, bits)


def replayed(scenario: Scenario, trace: BitTrace, *policies: str, form: str, slack: bool = False):  # type: ignore[no-untyped-def]
    steps: list[StepBatch] = []
    run = simulate(scenario, trace, *policies, form=form, budget_slack=slack, each_step=steps.append)
    return run, np.concatenate([batch.bytes_by_kind for batch in steps])


@pytest.mark.parametrize("migration", MIGRATIONS)
def test_kernels_count_what_numpy_counts(migration: str) -> None:
    rng = random.Random(MIGRATIONS.index(migration))
    for number in range(12):
        scenario = small(rng)
        trace = drawn(scenario, rng, rng.choice([0.0, 0.3, 0.6, 1.0]), rng.choice([0.0, 0.9]))
        policies = PLACEMENTS[number % len(PLACEMENTS)], migration
        slack = rng.random() < 0.5
        kernels, kernel_bytes = replayed(scenario, trace, *policies, form="kernels", slack=slack)
        plain, plain_bytes = replayed(scenario, trace, *policies, form="numpy", slack=slack)
        np.testing.assert_array_equal(kernel_bytes, plain_bytes, f"{policies} slack={slack} {scenario}")
        np.testing.assert_array_equal(kernels.series.hbm_items, plain.series.hbm_items)
        assert replace(kernels, series=plain.series) == plain


@pytest.mark.parametrize("passive", [Passive.OFF, Passive.ALL])
@pytest.mark.parametrize("migration", MIGRATIONS)
def test_kernels_count_what_numpy_counts_in_rows_of_many_words(migration: str, passive: Passive) -> None:
    """Rows of 66 words, which kernels count by the block, with room for half of the items in HBM."""
    layers, prefill, item = 2, 4200, 100
    memories = Memories(layers * 2 * item + layers * prefill * item // 2, 1000, 400, 300, 500)
    scenario = Scenario("many words", memories, layers, item, item, item, prefill, 4, passive=passive)
    trace = drawn(scenario, random.Random(MIGRATIONS.index(migration)), 0.5, 0.5)
    runs = [replayed(scenario, trace, "prefer-hbm", migration, form=form) for form in ("kernels", "numpy")]
    assert runs[0][0].traffic.hbm_read > 0
    np.testing.assert_array_equal(runs[0][1], runs[1][1])


def test_published_figures_of_the_legacy_study() -> None:
    lengths = (shipped("seed-003-legacy", decode_tokens) for decode_tokens in (2048, 4096))
    short, long = (simulate(scenario, unskipped(scenario), "prefer-hbm", "none") for scenario in lengths)
    assert f"{short.time_s:.4f} {long.time_s:.4f}" == "15.2122 30.9018"
    assert f"{long.mean_alpha:.6f}" == "0.988547"


def test_policies_rank_as_expected_where_hbm_is_full_and_much_is_skipped() -> None:
    memories = Memories(1, 4915 * 10**9, 900 * 10**9, 900 * 10**9, 1900 * 10**9)
    full = Scenario("full", memories, 4, 98 * 10**6, 195 * 10**6, 65536, 1875, 128, Initial(Start.HBM, Fraction(1, 2)))
    capacity = full.weights_bytes // 2 + full.prefill_kv_bytes
    full = replace(full, memories=replace(memories, hbm_capacity_bytes=capacity))
    trace = drawn(full, random.Random(0), level=0.6, stay=5 / 6)  # nine of ten tokens read are read again
    ranked = "alpha", "look-ahead-layer", "look-ahead-batch-layer", "none", "look-ahead"
    runs = simulate_many(full, trace, [("prefer-hbm", migration) for migration in ranked])
    alpha, one, batch, none, whole = (run.time_s for run in runs)
    assert alpha < batch < none < whole and alpha < one < whole


def test_many_pairs_in_one_pass_are_the_same_runs() -> None:
    rng = random.Random(3)
    scenario = replace(small(rng), mode=Mode.EXCLUSIVE)
    trace = drawn(scenario, rng)
    pairs = [("prefer-hbm", "past-window:window=6"), ("look-ahead-batch", "alpha"), ("layer-importance", "lru")]
    told: list[int] = []
    together = simulate_many(scenario, trace, pairs, progress=told.append)
    assert sum(told) == scenario.decode_tokens
    for run, policies in zip(together, pairs, strict=True):
        alone = simulate(scenario, trace, *policies)
        np.testing.assert_array_equal(run.series.time_s, alone.series.time_s)
        assert replace(run, series=alone.series) == alone


def test_placements_part_where_they_first_count(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(8)
    full = replace(small(rng), prefill_tokens=80, decode_tokens=24, layers=3, initial=Initial(Start.HBM, Fraction(1)))
    item = full.kv_bytes
    full = replace(full, memories=replace(full.memories, hbm_capacity_bytes=full.weights_bytes + 200 * item))
    trace = drawn(full, rng)
    trace.bits[:9] = 0  # nothing is skipped, and nothing leaves, until then
    monkeypatch.setattr("penstock.sim.windows.WINDOW_BYTES", 4 * 8 * full.layers * trace.shape.words)
    for mode, migration in itertools.product(Mode, MIGRATIONS):
        scenario = replace(full, mode=mode, passive=Passive.OFF)
        pairs = [(placement, migration) for placement in PLACEMENTS]
        for run, policies in zip(simulate_many(scenario, trace, pairs), pairs, strict=True):
            plain = simulate(scenario, trace, *policies, form="kernels")
            np.testing.assert_array_equal(run.series.time_s, plain.series.time_s)
            assert replace(run, series=plain.series) == plain


def test_state_goes_on_over_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(11)
    for _ in range(10):
        scenario = small(rng)
        trace = drawn(scenario, rng)
        pairs = [(rng.choice(PLACEMENTS), migration) for migration in MIGRATIONS]
        whole = simulate_many(scenario, trace, pairs)
        with monkeypatch.context() as patch:
            patch.setattr("penstock.sim.windows.WINDOW_BYTES", 3 * 8 * scenario.layers * trace.shape.words)
            cut = simulate_many(scenario, trace, pairs)
        for one, other in zip(whole, cut, strict=True):
            np.testing.assert_array_equal(one.series.time_s, other.series.time_s)
            assert replace(one, series=other.series) == other


def test_every_policy_is_in_the_lists_above() -> None:
    assert {text.partition(":")[0] for text in PLACEMENTS} == set(placements())
    assert {text.partition(":")[0] for text in MIGRATIONS} == set(migrations())


def test_each_step_is_handed_over_in_full() -> None:
    scenario = small(random.Random(1))
    batches: list[StepBatch] = []
    run = simulate(scenario, drawn(scenario, random.Random(1)), "prefer-hbm", "alpha", each_step=batches.append)
    assert next(batch.first for batch in batches) == scenario.prefill_tokens
    assert sum(float(batch.time_s.sum()) for batch in batches) == pytest.approx(run.time_s)
    assert sum(batch.bytes_by_kind.shape[0] for batch in batches) == scenario.decode_tokens
    assert max(int(batch.binding.max()) for batch in batches) < len(BINDING)


def test_a_trace_of_another_shape_is_refused() -> None:
    scenario = small(random.Random(2))
    trace = drawn(replace(scenario, decode_tokens=scenario.decode_tokens + 1), random.Random(2))
    with pytest.raises(UserError, match=r"the trace has \d+ decode steps and the scenario small has"):
        simulate(scenario, trace, "prefer-hbm", "none")


def test_bandwidths_too_odd_for_kernels_run_in_numpy() -> None:
    scenario = small(random.Random(4))
    odd = replace(scenario.memories, hbm_bytes_per_s=2684633623859, ext_read_bytes_per_s=906704305733)
    odd = replace(odd, ext_write_bytes_per_s=622051690711, duplex=Duplex.SERIAL)
    scenario, trace = replace(scenario, memories=odd), drawn(scenario, random.Random(4))
    with pytest.raises(UserError, match="64-bit"):
        simulate(scenario, trace, "prefer-hbm", "none", form="kernels")
    assert simulate(scenario, trace, "prefer-hbm", "none").time_s > 0
