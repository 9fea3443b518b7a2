"""What holds of every run, on small instances of any kind."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.sim.cases import unskipped
from tests.sim.instances import Instance, all_skipped, instances

from penstock.sim.initial import initial_state
from penstock.sim.ledger import StepBatch
from penstock.sim.memories import Memories
from penstock.sim.prices import (
    EXT_READ,
    EXT_WRITTEN,
    HBM_READ,
    HBM_WRITTEN,
    MOVED_EXT_WRITTEN,
    MOVED_HBM_WRITTEN,
)
from penstock.sim.registry import migrations, placements, references
from penstock.sim.result import Run
from penstock.sim.scenario import Mode, Scenario
from penstock.sim.simulator import simulate
from penstock.trace.skip_trace import BitTrace

PLACEMENTS = st.sampled_from(list(placements()))
MIGRATIONS = st.sampled_from([*migrations(), *references(), "look-ahead:room", "alpha:budget=slack"])

# Ten bytes in HBM that have a copy: at 10 and 10 bytes a second each memory reads five, in half a second. At 11 and 10,
# a reader that took no byte over beyond balance would leave six in HBM, and take longer.
TEN_BYTES = Scenario("ten bytes", Memories(10, 10, 10, 40, 40), 1, 0, 0, 1, 10, 1, mode=Mode.INCLUSIVE)
ROUNDING = TEN_BYTES, unskipped(TEN_BYTES)


def replayed(instance: Instance, *policies: str) -> tuple[Run, np.ndarray]:
    """A run, and the bytes of its steps [steps, layers, sublayers, 8 kinds]."""
    batches: list[StepBatch] = []
    run = simulate(*instance, *policies, form="numpy", each_step=batches.append)
    return run, np.concatenate([batch.bytes_by_kind for batch in batches])


@settings(max_examples=100, deadline=None)
@example(ROUNDING, "prefer-hbm", "hbm_bytes_per_s", 1)
@given(
    instances(),
    st.sampled_from(["prefer-hbm", "look-ahead-batch", "look-ahead-batch:rule=any,window=2", "layer-importance"]),
    st.sampled_from(["hbm_bytes_per_s", "ext_read_bytes_per_s", "ext_write_bytes_per_s", "ext_internal_bytes_per_s"]),
    st.integers(1, 5),
)
def test_time_never_rises_when_a_bandwidth_rises(instance: Instance, placement: str, rate: str, more: int) -> None:
    """Where what lies where does not depend on bandwidths: these placements from fixed shares, and no migration."""
    scenario, trace = instance
    memories = replace(scenario.memories, **{rate: getattr(scenario.memories, rate) + more})
    slower, faster = (
        simulate(each, trace, placement, "none", form="numpy").time_s
        for each in (scenario, replace(scenario, memories=memories))
    )
    assert faster <= slower * (1 + 1e-12)


@settings(max_examples=60, deadline=None)
@given(instances(), PLACEMENTS, MIGRATIONS)
def test_each_step_reads_what_is_not_skipped_and_writes_the_new_item(
    instance: Instance, placement: str, migration: str
) -> None:
    scenario, trace = instance
    _, counts = replayed(instance, placement, migration)
    assert (counts >= 0).all()  # so alpha lies from 0 to 1
    reads = counts[..., HBM_READ] + counts[..., EXT_READ]
    assert (reads[..., 0] == scenario.attn_bytes + scenario.kv_bytes * items_read(trace)).all()
    assert (reads[..., 1] == scenario.mlp_bytes).all()
    to_hbm, to_ext = counts[..., 0, HBM_WRITTEN], counts[..., 0, EXT_WRITTEN]
    if scenario.mode is Mode.EXCLUSIVE:
        assert (to_hbm + to_ext == scenario.kv_bytes).all()
    else:
        assert (to_ext == scenario.kv_bytes).all() and np.isin(to_hbm, (0, scenario.kv_bytes)).all()


@settings(max_examples=60, deadline=None)
@given(instances(), PLACEMENTS, MIGRATIONS)
def test_hbm_holds_what_came_less_what_left_and_never_more_than_fits(
    instance: Instance, placement: str, migration: str
) -> None:
    scenario, _ = instance
    run, counts = replayed(instance, placement, migration)
    assert run.peak_hbm_bytes <= scenario.memories.hbm_capacity_bytes
    came = counts[..., HBM_WRITTEN] + counts[..., MOVED_HBM_WRITTEN]
    held = scenario.kv_bytes * (run.series.hbm_items - initial_state(scenario).items.sum())
    gained = (came - counts[..., MOVED_EXT_WRITTEN]).sum(axis=(1, 2)).cumsum()
    if scenario.mode is Mode.EXCLUSIVE:
        assert held.tolist() == gained.tolist()
    else:  # what leaves has a copy, and costs nothing
        assert (held <= gained).all()


@settings(max_examples=40, deadline=None)
@given(instances(), PLACEMENTS, MIGRATIONS)
def test_what_skips_all_reads_weights_alone(instance: Instance, placement: str, migration: str) -> None:
    scenario, trace = instance
    run, counts = replayed((scenario, all_skipped(trace)), placement, migration)
    reads = counts[..., HBM_READ] + counts[..., EXT_READ]
    assert (reads == [scenario.attn_bytes, scenario.mlp_bytes]).all()
    assert (run.kv_read, run.kv_hbm_read) == (0, 0)


@settings(max_examples=40, deadline=None)
@given(instances(), PLACEMENTS, MIGRATIONS)
def test_means_are_those_of_the_steps(instance: Instance, placement: str, migration: str) -> None:
    run, counts = replayed(instance, placement, migration)
    from_hbm, read = counts[..., HBM_READ], counts[..., HBM_READ] + counts[..., EXT_READ]
    assert sum(run.binding_s) == pytest.approx(run.time_s)
    if not read.any():
        assert np.isnan(run.mean_alpha) and np.isnan(run.mean_alpha_bytes)
        return
    assert run.mean_alpha == pytest.approx((from_hbm[read > 0] / read[read > 0]).mean())
    assert run.mean_alpha_bytes == pytest.approx(from_hbm.sum() / read.sum())


def items_read(trace: BitTrace) -> np.ndarray:
    """|R(n, l)| as [steps, layers]."""
    exist = trace.shape.prefill_tokens + np.arange(trace.shape.steps)
    return exist[:, None] - np.array([[int(word).bit_count() for (word,) in layers] for layers in trace.bits])
