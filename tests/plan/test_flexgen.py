from dataclasses import replace

import pytest

from penstock.errors import UserError
from penstock.machine.machine import Curve, Link, Machine, Processor
from penstock.plan.flexgen import best_flexgen, predict_flexgen
from penstock.plan.flexgen_group import FlexGenPolicy, OptShape
from penstock.plan.linear import Infeasible
from penstock.plan.policy import Shares

GIB = 2**30

# Two layers, h1 = 10, h2 = 20: W = 8·100 + 4·200 = 1,600 bytes. s = 4, n = 2, b = 3, B = 2, so R = 6.
SMALL = OptShape(layers=2, hidden=10, ffn=20, heads=2)
PLAIN = Machine(
    name="plain",
    memory={"gpu": 100_000, "cpu": 200_000, "disk": 400_000},
    links={
        "cpu→gpu": Link(1000.0),
        "gpu→cpu": Link(500.0),
        "disk→cpu": Link(100.0),
        "cpu→disk": Link(50.0),
    },
    processors={
        "gpu": Processor(
            products={"float16": Curve(((64.0, 1000.0), (4096.0, 10_000.0)))},
            attention=Curve(((1.0, 100.0), (4096.0, 1000.0))),
            kv_bytes_per_s=1e12,
            activation_bytes_per_s=1e12,
        ),
        "cpu": Processor(
            {"float16": Curve.flat(100.0)}, Curve.flat(40.0), kv_bytes_per_s=20.0, activation_bytes_per_s=1e9
        ),
    },
)
THIRDS = FlexGenPolicy(
    weights=Shares(0.5, 0.25, 0.25),
    kv=Shares(0.2, 0.4, 0.4),
    activations=Shares(0.0, 0.5, 0.5),
    batch_size=3,
    num_batches=2,
)


def test_prefill_by_hand() -> None:
    lanes = predict_flexgen(SMALL, PLAIN, THIRDS, prompt=4, generate=2).prefill_lanes
    hidden = 2 * 4 * 10 * 6  # 2s·h1·R = 480
    kv = 4 * (4 + 1) * 10 * 6  # 4(s+1)h1·R = 1,200
    assert lanes == pytest.approx(
        {
            "cpu→gpu": (1600 * 0.5 + hidden * 1.0) / 1000,
            "gpu→cpu": (kv * 0.8 + hidden * 1.0) / 500,
            "disk→cpu": (1600 * 0.25 + hidden * 0.5) / 100,
            "cpu→disk": (kv * 0.4 + hidden * 0.5) / 50,
            "compute": 6 * (8 * 4 * 100 + 4 * 4 * 200) / 10_000 + 4 * 6 * 16 * 10 / 1000,
        }
    )


@pytest.mark.parametrize("on_cpu", [True, False])
def test_decode_by_hand(on_cpu: bool) -> None:
    predicted = predict_flexgen(SMALL, PLAIN, replace(THIRDS, cpu_attention=on_cpu), prompt=4, generate=2)
    hidden = 2 * 10 * 6  # 2h1·R = 120
    kv = 4 * 6 * 5 * 10  # 4R(s + n/2)h1 = 1,200 bytes read, and as many FLOP
    assert predicted.decode_lanes == pytest.approx(
        {
            "cpu→gpu": (1600 * 0.5 + hidden * 1.0 + (0 if on_cpu else kv * 0.8)) / 1000,
            "gpu→cpu": hidden * 1.0 / 500,
            "disk→cpu": (1600 * 0.25 + hidden * 0.5 + kv * 0.4) / 100,
            "cpu→disk": (4 * 6 * 10 * 0.4 + hidden * 0.5) / 50,
            # the cpu reads 20 bytes of KV a second, one FLOP each: its 40 FLOP/s are out of reach
            "compute": 6 * (800 + 800) / 1000 + (kv * 0.2 / 100 + kv * 0.8 / 20 if on_cpu else kv / 100),
        }
    )


def test_the_job() -> None:
    predicted = predict_flexgen(SMALL, PLAIN, THIRDS, prompt=4, generate=2)
    assert predicted.prefill_layer_s == predicted.prefill_lanes["cpu→disk"] == pytest.approx(14.4)
    assert predicted.decode_layer_s == predicted.decode_lanes["compute"] == pytest.approx(60.0)
    assert predicted.binding_lanes == {"prefill": "cpu→disk", "decode": "compute"}
    assert predicted.seconds == pytest.approx(2 * 14.4 + 2 * (2 - 1) * 60.0)
    assert predicted.tok_s == pytest.approx(6 * 2 / predicted.seconds)


def test_memory_by_hand() -> None:
    predicted = predict_flexgen(SMALL, PLAIN, THIRDS, prompt=4, generate=2)
    weights, kv, activations = 2 * 1600, 2 * 4 * 10 * 6 * 6, 2 * 4 * 10 * 6
    # projections 8b·s·h1 = 960; attention b(4s·h1 + 2·heads·s²) = 672; MLP 2b·s(h1 + h2) = 720
    assert predicted.working_bytes == 960
    assert predicted.memory == {
        "gpu": weights * 0.5 + kv * 0.2 + 2 * 1600 * 0.5 + 960,
        "cpu": weights * 0.25 + kv * 0.4 + activations * 0.5 + 2 * 1600 * 0.25,
        "disk": weights * 0.25 + kv * 0.4 + activations * 0.5,
    }
    assert predicted.short == {}
    small = replace(PLAIN, memory={"gpu": 4000, "cpu": 200_000, "disk": 1000})
    short = predict_flexgen(SMALL, small, THIRDS, prompt=4, generate=2).short
    assert short == {"gpu": predicted.memory["gpu"] - 4000, "disk": predicted.memory["disk"] - 1000}


def test_the_working_set_is_that_of_the_largest_operator() -> None:
    # OPT-30B, 20 % of it on a gpu of 16 GiB, 48 rows a batch: measured in the paper, and refused by the operators' sum.
    opt_30b = OptShape(layers=48, hidden=7168, ffn=28672, heads=56)
    policy = FlexGenPolicy(Shares(0.2, 0.8), Shares(cpu=1.0), Shares(cpu=1.0), batch_size=48, num_batches=3)
    card = replace(PLAIN, memory={"gpu": 16 * GIB, "cpu": 208 * 10**9})
    predicted = predict_flexgen(opt_30b, card, policy, prompt=512, generate=32)
    assert predicted.short == {}
    assert predicted.working_bytes == 48 * (4 * 512 * 7168 + 2 * 56 * 512**2)
    operators = 48 * (8 * 512 * 7168 + (4 * 512 * 7168 + 2 * 56 * 512**2) + 2 * 512 * (7168 + 28672))
    assert predicted.memory["gpu"] - predicted.working_bytes + operators > 18 * 10**9


def test_four_bits_are_charged_as_a_quarter() -> None:
    packed = replace(THIRDS, weight_bits=4, kv_bits=4, activations=Shares(gpu=1.0))
    plain = replace(THIRDS, activations=Shares(gpu=1.0))
    quarter = predict_flexgen(SMALL, PLAIN, packed, prompt=4, generate=2)
    whole = predict_flexgen(SMALL, PLAIN, plain, prompt=4, generate=2)
    for lane in ("cpu→gpu", "disk→cpu", "cpu→disk"):
        assert quarter.decode_lanes[lane] == pytest.approx(whole.decode_lanes[lane] / 4)
    assert quarter.decode_lanes["compute"] == pytest.approx(whole.decode_lanes["compute"])
    assert quarter.memory["disk"] == whole.memory["disk"] / 4


def test_the_best_placement_where_everything_fits() -> None:
    policy, predicted = best_flexgen(SMALL, PLAIN, 3, 2, prompt=4, generate=2)
    assert policy.weights == policy.kv == policy.activations == Shares(gpu=1.0)
    assert predicted.prefill_lanes["cpu→gpu"] == predicted.decode_lanes["disk→cpu"] == 0.0


def test_the_best_placement_fits_and_beats_a_given_one() -> None:
    given = predict_flexgen(SMALL, PLAIN, THIRDS, prompt=4, generate=2)
    tight = replace(PLAIN, memory=given.memory)
    policy, best = best_flexgen(SMALL, tight, 3, 2, prompt=4, generate=2)
    assert best.short == {}
    assert best.seconds < given.seconds
    either = [best_flexgen(SMALL, tight, 3, 2, 4, 2, cpu_attention=on_cpu)[1].seconds for on_cpu in (True, False)]
    assert best.seconds == min(either)
    assert policy.batch_size == 3
    assert policy.num_batches == 2


def test_what_cannot_fit() -> None:
    cramped = replace(PLAIN, memory={"gpu": 4500, "cpu": 2000})
    with pytest.raises(Infeasible) as caught:
        best_flexgen(SMALL, cramped, 3, 2, prompt=4, generate=2)
    assert caught.value.short["cpu"] > 0


def test_machines_that_lack_something() -> None:
    without_disk = replace(PLAIN, memory={"gpu": 10_000, "cpu": 20_000})
    with pytest.raises(UserError, match="25% of the weights are on disk, which plain does not have"):
        predict_flexgen(SMALL, without_disk, THIRDS, prompt=4, generate=2)
    without_gpu = replace(PLAIN, memory={"cpu": 20_000}, processors={"cpu": PLAIN.processors["cpu"]})
    with pytest.raises(UserError, match="plain has no gpu"):
        best_flexgen(SMALL, without_gpu, 3, 2, prompt=4, generate=2)
    rates = {"bfloat16": Curve.flat(1.0), "float32": Curve.flat(1.0)}
    other = replace(PLAIN, processors={**PLAIN.processors, "gpu": replace(PLAIN.processors["gpu"], products=rates)})
    with pytest.raises(UserError, match="no rate for products in float16: it has bfloat16, float32"):
        predict_flexgen(SMALL, other, THIRDS, prompt=4, generate=2)
