"""What the account of a run adds up to."""

from types import SimpleNamespace

import pytest

from penstock.engine.engine import SweepReport
from penstock.memory.clock import Clock
from penstock.plan.policy import Policy, Shares
from penstock.plan.types import Placement
from penstock.report import Account


def engine(kv_bytes, state_bytes):
    return SimpleNamespace(
        scheduler=SimpleNamespace(blocks_in_use=lambda tier: kv_bytes.get(tier, 0)),
        kv=SimpleNamespace(device=SimpleNamespace(compute_tier="cpu")),
        states=SimpleNamespace(nbytes=state_bytes),
    )


def test_rates_are_of_their_own_tokens_and_seconds():
    clock = Clock()
    account = Account(clock.read(), tokens_in=30, prompts=2)
    account.add(SweepReport({0: 5, 1: 6}, (), 30, 0, 2, 3.0, {"cpu": 100}), engine({"cpu": 10}, 7))
    account.add(SweepReport({0: 5, 1: 6}, (0,), 0, 2, 2, 1.0, {"cpu": 40}), engine({"cpu": 8, "disk": 20}, 7))
    account.add(SweepReport({1: 6}, (1,), 0, 1, 1, 0.5, {}), engine({"cpu": 4}, 3))
    policy = Policy(Shares(cpu=1.0), Shares(cpu=1.0), Shares(cpu=1.0), rows=2, sweep_tokens=64, batch_tokens=64)
    run = account.summary(clock, Placement(policy, (), {}, 0, {}), {"cpu": 1}, {"disk": 9}, {"cpu": 1})
    assert (run["tokens_out"], run["sweeps"], run["rows_mean"]) == (5, 3, pytest.approx(5 / 3))
    assert run["prefill_tok_s"] == pytest.approx(30 / 3.0)
    assert run["decode_tok_s"] == pytest.approx(3 / 1.5), "tokens that end a prefill are not decode's"
    assert run["peak_bytes"]["disk"] == 9 and run["budget_bytes"] == {"cpu": 1}
    assert run["placed_bytes"]["kv"] == {"gpu": 0, "cpu": 15, "disk": 20}
    assert run["placed_bytes"]["activations"] == {"gpu": 0, "cpu": 100, "disk": 0}
