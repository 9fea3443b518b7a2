"""Attention's seconds where it runs, told by hand."""

from dataclasses import replace

import pytest

from penstock.machine.machine import Curve, Link, Machine, Processor
from penstock.plan.attending import Attending
from penstock.plan.load import Load, Spans
from penstock.plan.policy import Policy, Shares
from penstock.plan.shape import AttentionShape

GPU, CPU = Shares(gpu=1.0), Shares(cpu=1.0)
FAST = Processor({"float16": Curve.flat(1e9)}, Curve(((1, 1e6), (64, 1e9))), 1e6, 1e12)
LINKS = {"cpu→gpu": Link(1e9, staging_bytes_per_s=1e5), "gpu→cpu": Link(1e9)}
MACHINE = Machine("m", {"gpu": 1, "cpu": 1}, LINKS, {"gpu": FAST, "cpu": replace(FAST, kv_bytes_per_s=1e5)})  # type: ignore[arg-type]  # the keys are links
POLICY = Policy(GPU, GPU, GPU, rows=4, sweep_tokens=64, batch_tokens=64)
LAYER = AttentionShape(kv_bytes=100, pair_flops=40, window=None, page=0)
DECODE = [Load((Spans(4, 9, 1),), 4)]


def test_decode_takes_its_bytes_or_its_arithmetic_whichever_is_longer() -> None:
    here, away = Attending(MACHINE, POLICY).seconds(LAYER, DECODE)
    assert (here, away) == (pytest.approx(4 * 10 * 100 / 1e6), 0)
    heavy = replace(LAYER, pair_flops=400)
    assert Attending(MACHINE, POLICY).seconds(heavy, DECODE)[0] == pytest.approx(4 * 10 * 400 / 1e6)


def test_each_row_that_decodes_takes_something_whatever_its_keys() -> None:
    machine = replace(MACHINE, processors={"gpu": replace(FAST, attention_row_s=1e-3)})
    one = Attending(machine, POLICY).seconds(LAYER, DECODE)[0]
    assert one == pytest.approx(4 * 1e-3 + 4 * 10 * 100 / 1e6)
    prompt = [Load((Spans(4, 0, 16),), 1)]
    assert Attending(machine, POLICY).seconds(LAYER, prompt) == Attending(MACHINE, POLICY).seconds(LAYER, prompt)


def test_a_window_ends_what_is_read() -> None:
    near = replace(LAYER, window=3)
    attending = Attending(MACHINE, POLICY)
    assert attending.seconds(near, DECODE)[0] < attending.seconds(LAYER, DECODE)[0] / 2
    assert attending.past_bytes(near, DECODE) == 4 * 3 * 100
    assert attending.past_bytes(LAYER, DECODE) == 4 * 9 * 100


def test_kv_on_the_cpu_is_attended_there_or_staged_on_its_way() -> None:
    beside = Attending(MACHINE, replace(POLICY, kv=CPU, attention="cpu"))
    assert beside.seconds(LAYER, DECODE) == (pytest.approx(4 * 100 / 1e6), pytest.approx(4 * 9 * 100 / 1e5))
    staged = Attending(MACHINE, replace(POLICY, kv=CPU))
    assert staged.seconds(LAYER, DECODE)[1] == pytest.approx(4 * 9 * 100 / 1e5)


def test_prompts_are_attended_where_they_were_computed() -> None:
    prompt = [Load((Spans(1, 0, 64),), 1)]
    beside = Attending(MACHINE, replace(POLICY, kv=CPU, attention="cpu"))
    assert beside.seconds(LAYER, prompt) == Attending(MACHINE, POLICY).seconds(LAYER, prompt)


def test_the_rest_of_a_prompt_attends_on_the_cpu_to_what_was_computed_before() -> None:
    chunk, half = [Load((Spans(1, 64, 64),), 1)], Shares(gpu=0.5, cpu=0.5)
    slow = {**MACHINE.processors, "cpu": replace(FAST, attention=Curve.flat(1e6), kv_bytes_per_s=1e12)}
    beside = Attending(replace(MACHINE, processors=slow), replace(POLICY, kv=half, attention="cpu"))
    assert beside.seconds(LAYER, chunk)[1] == pytest.approx(0.5 * 64 * 64 * 40 / 1e6)


def test_packed_kv_is_unpacked_as_a_whole_first() -> None:
    slow = {**MACHINE.processors, "gpu": replace(FAST, dequantise_per_s=1e4)}
    packed, layer = (
        Attending(replace(MACHINE, processors=slow), POLICY),
        replace(LAYER, kv_bytes=30, packed_elements=50),
    )
    assert packed.seconds(layer, DECODE)[0] == pytest.approx(4 * 10 * 50 / 1e4 + 4 * 10 * 100 / 1e6)
    assert packed.past_bytes(layer, DECODE) == pytest.approx(4 * 9 * 30)
