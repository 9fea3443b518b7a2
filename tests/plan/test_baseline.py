"""FlexGen's equations beside a plan: what they take a model for, and what they say of its policy."""

from dataclasses import replace

import pytest
from tests.plan.made import MIB, case, machine

from penstock.errors import UserError
from penstock.machine.machine import Link
from penstock.plan.baseline import baseline, check_expressible, flexgen_policy, opt_shape
from penstock.plan.case import Case
from penstock.plan.flexgen import predict_flexgen
from penstock.plan.flexgen_group import FlexGenPolicy
from penstock.plan.policy import Policy, Shares
from penstock.plan.types import Ledger, Length

GPU, CPU = Shares(gpu=1.0), Shares(cpu=1.0)
POLICY = Policy(CPU, GPU, GPU, rows=20, sweep_tokens=512, batch_tokens=256)


def made(generated: int = 8) -> Case:
    """A gpu of 160 MiB beside the made-up cpu, and a job of prompts of 64 tokens."""
    plain = machine()
    links = {**plain.links, "cpu→gpu": Link(4e9), "gpu→cpu": Link(4e9)}
    gpu = replace(plain.processors["cpu"], kv_bytes_per_s=1e11)
    host = replace(
        plain, memory={**plain.memory, "gpu": 1 << 30}, links=links, processors={**plain.processors, "gpu": gpu}
    )
    asked = case([Length(64, generated)] * 40)
    ledger = Ledger({"gpu": 160 * MIB, "cpu": 512 * MIB, "disk": 0}, {"cpu": 12 * MIB})
    return replace(asked, machine=host, ledger=ledger)


def test_a_layer_is_taken_for_one_with_as_many_weights() -> None:
    shape = opt_shape(made().shape)
    assert (shape.layers, shape.hidden, shape.element_bytes) == (8, 1024, 2)
    assert shape.layer_bytes == 2 * 16 * MIB  # as both of its pages have
    assert shape.ffn == (16 * MIB - 4 * 1024**2) // 2048


def test_a_policy_becomes_batches_of_as_many_prompts_as_a_call_takes() -> None:
    found = flexgen_policy(POLICY, 64)
    assert (found.batch_size, found.num_batches) == (4, 5)
    static = replace(POLICY, admission="static", batch_size=7, num_batches=2, attention="cpu")
    assert flexgen_policy(static, 64) == FlexGenPolicy(CPU, GPU, GPU, 7, 2, cpu_attention=True)
    assert flexgen_policy(POLICY, 1000).batch_size == 1


def test_the_equations_are_asked_about_the_plan_s_own_policy_within_its_budgets() -> None:
    asked = made()
    found = baseline(asked, POLICY)
    budgeted = replace(asked.machine, memory={"gpu": 160 * MIB, "cpu": 500 * MIB})
    assert found.of_policy.predicted == predict_flexgen(opt_shape(asked.shape), budgeted, found.of_policy.policy, 64, 8)
    assert found.best is not None and not found.best.predicted.short
    assert found.best.policy.rows == found.of_policy.policy.rows
    if not found.of_policy.predicted.short:
        assert found.best.predicted.tok_s >= found.of_policy.predicted.tok_s * (1 - 1e-9)


def test_where_nothing_fits_there_is_no_best_of_its_own() -> None:
    tight = replace(made(), ledger=Ledger({"gpu": MIB, "cpu": MIB}, {}))
    found = baseline(tight, POLICY)
    assert found.best is None and found.of_policy.predicted.short


def test_what_differs_from_the_model_is_said() -> None:
    said = baseline(made(), POLICY).assumes
    assert any("4 KiB a token and layer; this model keeps 512 B" in line for line in said), said
    assert any("an ffn of 6,144" in line for line in said)
    assert not any("mean length" in line for line in said)
    ragged = replace(made(), lengths=[Length(64, 8), Length(32, 4)])
    assert any("mean length" in line for line in baseline(ragged, POLICY).assumes)


def test_what_it_cannot_express_is_refused_by_name() -> None:
    asked = made()
    check_expressible(asked)
    routed = replace(asked.shape, experts=64, experts_chosen=4)
    recurrent = replace(asked.shape, footprint=replace(asked.shape.footprint, state=100))
    narrow = replace(asked.shape, hidden_bytes=1 << 16)
    hybrid = replace(asked.shape, attention=asked.shape.attention[::2])
    for shape, reason in (
        (routed, "64 experts a layer"),
        (recurrent, "recurrent state"),
        (narrow, "16,777,216 weights a layer, fewer"),
        (hybrid, "8 layers of which 4 keep keys"),
    ):
        with pytest.raises(UserError, match=f"made-up has {reason}"):
            check_expressible(replace(asked, shape=shape))
    with pytest.raises(UserError, match="made-up has no gpu"):
        check_expressible(replace(asked, machine=machine()))
