"""Layers computed on the cpu beside a gpu: what their sweeps cost, told by hand."""

from dataclasses import replace

import pytest
from tests.plan.made import MIB, beside_a_gpu, shape

from penstock.machine.machine import Curve, Link, Machine, Processor
from penstock.plan.cost import SweepCost
from penstock.plan.load import Load, Spans
from penstock.plan.plan import Plan
from penstock.plan.policy import Policy, Shares, Tier
from penstock.plan.reasons import explain
from penstock.plan.shape import ModelShape
from penstock.plan.split_cost import SplitCost, turning_point, with_turning_point
from penstock.plan.types import Asked, Length
from penstock.plan.virtual import VirtualRun

GPU, CPU = Shares(gpu=1.0), Shares(cpu=1.0)
# products alone take time: 16 Mi weights a layer, 1 TFLOP/s on the gpu and 100 GFLOP/s beside it
FAST = Processor({"float32": Curve.flat(1e12)}, Curve.flat(1e30), 1e30, 1e30)
SLOW = replace(FAST, products={"float32": Curve.flat(1e11)})
LINKS = {"disk→cpu": Link(1e9), "cpu→disk": Link(1e9), "cpu→gpu": Link(1e10), "gpu→cpu": Link(1e10)}
MACHINE = Machine("m", {"gpu": 1, "cpu": 1}, LINKS, {"gpu": FAST, "cpu": SLOW})  # type: ignore[arg-type]  # the keys are links
POLICY = Policy(GPU, CPU, GPU, rows=8, sweep_tokens=64, batch_tokens=64, attention="cpu", cpu_layers=2, cpu_tokens=16)
LAYER_FLOPS = 2 * 16 * MIB  # of one token: 8 Mi weights in each of two pages


def decode(rows: int, calls: int = 1) -> tuple[Load, ...]:
    return (Load((Spans(rows, 0, 1),), rows, calls),)


def cost(gpu_pages: Tier = "gpu", **policy: object) -> SplitCost:
    homes: list[Tier] = ["cpu"] * 4 + [gpu_pages] * 12
    return SplitCost(shape(), MACHINE, replace(POLICY, **policy), homes)  # type: ignore[arg-type]  # a test's shorthand


def test_a_model_is_parted_between_two_layers() -> None:
    first, rest = shape(8).parted(3)
    assert (len(first.pages), len(rest.pages)) == (6, 10)
    assert [one.page for one in first.attention] == [0, 2, 4] and [one.page for one in rest.attention] == [
        0,
        2,
        4,
        6,
        8,
    ]
    assert first.token_flops + rest.token_flops == shape(8).token_flops
    assert first.traffic_bytes + rest.traffic_bytes == shape(8).traffic_bytes


def test_one_call_is_computed_by_one_processor_after_the_other() -> None:
    priced = cost().price(decode(8))
    on_gpu, on_cpu, hidden_s = 6 * 8 * LAYER_FLOPS / 1e12, 2 * 8 * LAYER_FLOPS / 1e11, 8 * 4096 / 1e10
    assert priced.lanes["gpu-compute"] == pytest.approx(on_gpu)
    assert priced.lanes["cpu-compute"] == pytest.approx(on_cpu)
    assert priced.lanes["gpu→cpu"] == priced.lanes["cpu→gpu"] == pytest.approx(hidden_s)
    assert priced.seconds == pytest.approx(on_gpu + on_cpu + 2 * hidden_s)


def test_several_calls_keep_both_processors_busy_where_nothing_streams() -> None:
    one, four = cost().price(decode(8)), cost().price(decode(8, 4))
    on_cpu = four.lanes["cpu-compute"]
    assert on_cpu == one.lanes["cpu-compute"]
    assert on_cpu < four.seconds < on_cpu + 0.3 * (one.seconds - on_cpu)
    streams = cost("cpu").price(decode(8, 4))
    assert streams.seconds > on_cpu + streams.lanes["cpu→gpu"] * 0.99


def test_large_sweeps_cost_what_they_do_where_all_layers_come_up() -> None:
    loads = decode(17)
    homes: list[Tier] = ["cpu"] * 4 + ["gpu"] * 12
    assert cost().price(loads) == SweepCost(shape(), MACHINE, POLICY, homes).price(loads)
    assert cost().price(loads).lanes["cpu→gpu"] == pytest.approx(4 * 16 * MIB / 1e10)
    assert cost(rows=17).price(loads).lanes["cpu-compute"] > 0  # a token of each row


def test_the_closed_form_leaves_the_cpu_s_pages_where_they_are() -> None:
    streamed: dict[Tier, float] = {"cpu": 6 * 16.0 * MIB}
    small, large = (cost().closed_form(decode(rows), streamed).lanes["cpu→gpu"] for rows in (8, 17))
    assert small == pytest.approx(2 * 16 * MIB / 1e10 + 8 * 4096 / 1e10)
    assert large == pytest.approx(6 * 16 * MIB / 1e10)


def test_packed_keys_or_not_all_attention_is_the_cpu_s() -> None:
    slow = {"gpu": FAST, "cpu": replace(SLOW, kv_bytes_per_s=1e6)}
    model = replace(shape(), footprint=replace(shape().footprint, query_bytes=100, key_bytes=30, found_bytes=50))
    homes: list[Tier] = ["cpu"] * 4 + ["gpu"] * 12
    priced = SplitCost(model, replace(MACHINE, processors=slow), POLICY, homes).price((Load((Spans(2, 99, 1),), 2),))
    kv_s = 8 * 2 * 100 * 512 / 1e6  # both rows' 100 keys at all 8 layers
    assert priced.lanes["cpu-compute"] == pytest.approx(kv_s + 2 * 2 * LAYER_FLOPS / 1e11)
    assert priced.lanes["gpu→cpu"] == pytest.approx((2 * 4096 + 6 * 2 * 130) / 1e10)
    assert priced.lanes["cpu→gpu"] == pytest.approx((2 * 4096 + 6 * 2 * 50) / 1e10)


@pytest.mark.parametrize(("upload", "tokens"), [(1e10, 10), (1e9, 100), (1e12, 1), (1.0, 1 << 15)])
def test_layers_come_up_where_the_cpu_would_take_longer(upload: float, tokens: int) -> None:
    machine = replace(MACHINE, links={**LINKS, "cpu→gpu": Link(upload)})  # type: ignore[arg-type, dict-item]  # as above
    # 2 bytes a weight on the link, 2 FLOP a token and weight at 1e11
    assert turning_point(shape(), machine) == pytest.approx(tokens, rel=0.1)


def test_where_they_do_is_settled_once() -> None:
    asked = Asked(cpu_layers=2)
    assert with_turning_point(asked, shape(), MACHINE).cpu_tokens == turning_point(shape(), MACHINE)
    assert with_turning_point(Asked(), shape(), MACHINE) == Asked()
    assert with_turning_point(replace(asked, cpu_tokens=7), shape(), MACHINE).cpu_tokens == 7


def planned(layers: int, lengths: list[Length], model: ModelShape | None = None) -> Plan:
    asked = Asked(cpu_layers=layers, cpu_tokens=16, rows=8)
    made = beside_a_gpu(lengths, 200, 400, asked)
    made = replace(made, shape=model or made.shape)
    return explain(made, made.machine, "a job")


def test_a_search_obeys_and_keeps_the_budgets() -> None:
    plan = planned(3, [Length(40, 20)] * 16)
    assert plan.policy.cpu_layers == 3 and plan.policy.kv == CPU and plan.policy.attention == "cpu"
    assert plan.placement is not None and plan.placement.homes[:6] == ("cpu",) * 6
    assert plan.fits and plan.memory["gpu"].kv == 0 and plan.memory["cpu"].kv > 0
    assert all(use.needed <= use.budget for use in plan.memory.values())
    assert {"cpu-compute", "gpu-compute"} <= plan.predicted.lanes.keys()


def test_sketches_and_virtual_runs_agree() -> None:
    lengths = [Length(40, 30)] * 64
    plan = planned(3, lengths)
    made = beside_a_gpu(lengths, 200, 400, Asked(cpu_layers=3, cpu_tokens=16, rows=8))
    assert plan.placement is not None
    run = VirtualRun(made, plan.placement).first(lengths)
    assert plan.predicted.seconds == pytest.approx(run.seconds, rel=0.05)
