"""Sweeps of a small model on a machine of round numbers, where each lane's seconds can be told by hand."""

import math
from dataclasses import replace

import pytest

from penstock.machine.machine import Curve, Link, Machine, Processor
from penstock.plan.cost import Priced, SweepCost
from penstock.plan.load import Load, Spans
from penstock.plan.policy import Policy, Shares
from penstock.plan.shape import AttentionShape, ModelShape, PageShape
from penstock.plan.types import Footprint

LAYERS, PAGE, KV = 4, 1_000_000, 1_000
GPU, CPU, DISK = Shares(gpu=1.0), Shares(cpu=1.0), Shares(disk=1.0)
PROCESSOR = Processor({"float16": Curve.flat(1e9)}, Curve.flat(1e9), kv_bytes_per_s=1e9, activation_bytes_per_s=1e12)
MACHINE = Machine(
    "round numbers",
    {"gpu": 10**9, "cpu": 10**10, "disk": 10**11},
    {"cpu→gpu": Link(1e9), "gpu→cpu": Link(1e9), "disk→cpu": Link(1e8), "cpu→disk": Link(1e8)},
    {"gpu": PROCESSOR, "cpu": replace(PROCESSOR, kv_bytes_per_s=1e7)},
)
SHAPE = ModelShape(
    name="small",
    arithmetic="float16",
    pages=[PageShape(PAGE, PAGE // 2, layer) for layer in range(LAYERS)],
    attention=[AttentionShape(KV, 1, None, layer) for layer in range(LAYERS)],
    hidden_bytes=100,
    traffic_bytes=0,
    vocabulary=0,
    footprint=Footprint([PAGE] * LAYERS, frozenset(), 0, 0, 0, 0, 16, query_bytes=100, answer_bytes=200),
)
POLICY = Policy(GPU, GPU, GPU, rows=10, sweep_tokens=10, batch_tokens=10)
DECODE = [Load((Spans(10, 99, 1),), 10)]
PRODUCT_S = LAYERS * 2 * (PAGE / 2) * 10 / 1e9
ATTENTION_S = LAYERS * 10 * 100 * KV / 1e9
PAGES_S = LAYERS * PAGE / 1e9
PAST_BYTES = LAYERS * 10 * 99 * KV


def sweep(machine: Machine = MACHINE, weights: str = "gpu", **policy: object) -> Priced:
    cost = SweepCost(SHAPE, machine, replace(POLICY, **policy), [weights] * LAYERS)  # type: ignore[arg-type, list-item]  # a test's shorthand
    return cost.price(DECODE)


def test_what_rests_where_it_is_computed_takes_products_and_attention() -> None:
    priced = sweep()
    assert priced.lanes == {"gpu-compute": pytest.approx(PRODUCT_S + ATTENTION_S)}
    assert priced.seconds == pytest.approx(PRODUCT_S + ATTENTION_S)


def test_pages_are_loaded_while_others_are_computed_and_with_one_slot_are_not() -> None:
    assert sweep(weights="cpu").seconds == pytest.approx(PRODUCT_S + ATTENTION_S)
    assert sweep(weights="cpu", slots=1).seconds == pytest.approx(PRODUCT_S + ATTENTION_S + PAGES_S)
    from_disk = sweep(weights="disk")
    assert from_disk.lanes["disk→cpu"] == pytest.approx(10 * PAGES_S)
    assert from_disk.seconds == pytest.approx(10 * PAGES_S, rel=0.3)


def test_kv_is_carried_in_portions_beside_the_compute_of_its_own_layer() -> None:
    priced = sweep(kv=CPU)
    assert priced.lanes["cpu→gpu"] == pytest.approx(PAST_BYTES / 1e9)
    assert priced.seconds == pytest.approx(PRODUCT_S + ATTENTION_S)
    slow = sweep(replace(MACHINE, links={**MACHINE.links, "disk→cpu": Link(2e7)}), kv=DISK)
    assert slow.lanes["disk→cpu"] == pytest.approx(PAST_BYTES / 2e7)
    assert slow.seconds == pytest.approx(PAST_BYTES / 2e7, rel=0.1)


def test_kv_that_is_staged_holds_the_products_back() -> None:
    links = {**MACHINE.links, "cpu→gpu": Link(1e9, staging_bytes_per_s=1e8)}
    staged, pinned = sweep(replace(MACHINE, links=links), kv=CPU), sweep(kv=CPU)
    assert staged.lanes["cpu-compute"] == pytest.approx(PAST_BYTES / 1e8)
    assert staged.seconds == pytest.approx(PRODUCT_S + ATTENTION_S + PAST_BYTES / 1e8)
    assert staged.lanes["cpu→gpu"] == pinned.lanes["cpu→gpu"]
    assert sweep(replace(MACHINE, links=links), kv=DISK) == sweep(kv=DISK)


def test_attention_on_the_cpu_leaves_kv_where_it_is_and_waits_for_it() -> None:
    priced = sweep(kv=CPU, attention="cpu")
    assert priced.lanes["cpu-compute"] == pytest.approx(LAYERS * 10 * 99 * KV / 1e7)
    assert priced.lanes["gpu-compute"] == pytest.approx(PRODUCT_S + ATTENTION_S / 100)
    assert priced.lanes["cpu→gpu"] == pytest.approx(LAYERS * 10 * 200 / 1e9)  # outputs, no keys
    assert priced.lanes["gpu→cpu"] == pytest.approx(LAYERS * 10 * (100 + KV) / 1e9)  # queries, and new keys
    assert priced.seconds == pytest.approx(priced.lanes["cpu-compute"] + priced.lanes["gpu-compute"])


def test_micro_batches_at_a_page_are_computed_while_the_cpu_attends_for_others() -> None:
    halves = [Load((Spans(5, 99, 1),), 5)] * 2
    fast = replace(MACHINE, processors={"gpu": PROCESSOR, "cpu": replace(PROCESSOR, kv_bytes_per_s=1e8)})
    cost = SweepCost(SHAPE, fast, replace(POLICY, kv=CPU, attention="cpu"), ["gpu"] * LAYERS)
    one, two = cost.price(DECODE), cost.price(halves)
    assert two.lanes == pytest.approx(one.lanes)
    assert two.seconds == pytest.approx(one.lanes["cpu-compute"] + one.lanes["gpu-compute"] / 2)
    loads = tuple(halves)
    assert cost.closed_form(loads, {}).seconds == pytest.approx(two.seconds)


def test_packed_kv_crosses_links_packed_and_is_unpacked_before_attention_reads_it() -> None:
    processors = {**MACHINE.processors, "gpu": replace(PROCESSOR, dequantise_per_s=1e8)}
    machine = replace(MACHINE, processors=processors)
    plain = sweep(machine, kv=CPU)
    packed = [replace(layer, kv_bytes=KV // 4, packed_elements=KV // 2) for layer in SHAPE.attention]
    cost = SweepCost(replace(SHAPE, attention=packed), machine, replace(POLICY, kv=CPU), ["gpu"] * LAYERS)
    tight = cost.price(DECODE)
    assert tight.lanes["cpu→gpu"] == pytest.approx(plain.lanes["cpu→gpu"] / 4)
    unpack_s = LAYERS * 10 * 100 * KV / 2 / 1e8
    assert tight.lanes["gpu-compute"] == pytest.approx(plain.lanes["gpu-compute"] + unpack_s)


def test_packed_weights_are_unpacked_for_every_micro_batch_unless_a_product_does_it() -> None:
    shape, half = replace(SHAPE, weight_bits=4.5, arithmetic="float16<int4"), Load((Spans(5, 99, 1),), 5)

    def more_s(processor: Processor) -> float:
        """What two calls of half of the rows take more than one of all."""
        machine = replace(MACHINE, processors={**MACHINE.processors, "gpu": processor})
        cost = SweepCost(shape, machine, POLICY, ["gpu"] * LAYERS)
        return cost.price([half, half]).seconds - cost.price(DECODE).seconds

    apart = replace(PROCESSOR, dequantise_per_s=1e8)
    assert more_s(apart) == pytest.approx(LAYERS * PAGE / 2 / 1e8)
    products = {**PROCESSOR.products, "float16<int4": Curve.flat(1e9)}
    assert more_s(replace(apart, products=products)) == pytest.approx(0.0, abs=1e-12)


def test_every_product_of_a_call_takes_something_besides_its_flop() -> None:
    shape = replace(SHAPE, pages=[replace(page, matrices=3) for page in SHAPE.pages])
    slow = replace(PROCESSOR, product_s={"float16": 1e-3, "bfloat16": 1.0})
    host = replace(MACHINE, processors={**MACHINE.processors, "gpu": slow})
    two = Load((Spans(10, 99, 1),), 10, calls=2)

    def seconds(machine: Machine, load: Load) -> float:
        return SweepCost(shape, machine, POLICY, ["gpu"] * LAYERS).price([load]).seconds

    for load in (*DECODE, two):
        assert seconds(host, load) - seconds(MACHINE, load) == pytest.approx(load.calls * LAYERS * 3 * 1e-3)


def test_more_slots_never_make_a_sweep_longer() -> None:
    seconds = [sweep(weights="cpu", kv=CPU, slots=slots).seconds for slots in (1, 2, 3, 8)]
    assert seconds == sorted(seconds, reverse=True)
    assert math.isfinite(seconds[-1])


def test_the_closed_form_is_at_most_the_exact_price_and_near_it() -> None:
    for kv in (GPU, CPU):
        cost = SweepCost(SHAPE, MACHINE, replace(POLICY, kv=kv), ["cpu"] * LAYERS)
        exact = cost.price(DECODE)
        near = cost.closed_form(DECODE, {"cpu": float(SHAPE.page_bytes)})
        assert 0.7 * exact.seconds <= near.seconds <= exact.seconds * (1 + 1e-9)
        assert near.lanes == pytest.approx(exact.lanes)


def test_kv_elsewhere_costs_what_a_policy_with_it_there_costs() -> None:
    here = SweepCost(SHAPE, MACHINE, POLICY, ["cpu"] * LAYERS)
    before = here.price(DECODE)
    assert here.with_kv(DISK).price(DECODE) == sweep(weights="cpu", kv=DISK)
    assert here.price(DECODE) == before != here.with_kv(DISK).price(DECODE)


def test_bytes_that_stream_by_the_tier_that_they_rest_on() -> None:
    cost = SweepCost(SHAPE, MACHINE, POLICY, ["gpu", "cpu", "disk", "disk"])
    assert cost.held == {"gpu": PAGE, "cpu": PAGE, "disk": 2 * PAGE}
