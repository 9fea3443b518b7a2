"""What keywords fix of placement and cut, and what they cannot."""

from typing import Any

import pytest

from penstock.asked import asked_for, check_here
from penstock.errors import UserError
from penstock.plan.policy import Policy, Shares
from penstock.plan.types import Asked, Placement

NOTHING: dict[str, Any] = dict.fromkeys(
    ("weights", "kv", "activations", "rows", "sweep_tokens", "batch_tokens", "slots", "batch_size", "num_batches")
)


def test_what_is_not_said_is_left_to_the_plan() -> None:
    assert asked_for(**NOTHING) == Asked()


def test_shares_are_read_and_counts_kept() -> None:
    said = asked_for(
        **{**NOTHING, "weights": "cpu=40%,disk=60%", "kv": {"cpu": 100}, "rows": 8, "slots": 1, "attention": "cpu"}
    )
    assert said == Asked(weights=Shares(cpu=0.4, disk=0.6), kv=Shares(cpu=1.0), rows=8, slots=1, attention="cpu")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"rows": 0}, "--rows 0: a whole number of at least 1"),
        ({"slots": 1.5}, "--slots 1.5: a whole number"),
        ({"batch_tokens": True}, "--batch-tokens True: a whole number"),
        ({"kv": "cpu=50%"}, "--kv 'cpu=50%' sums to 50 %"),
        ({"attention": "disk"}, "--attention disk: there are auto, cpu, gpu"),
        ({"compute_cpu_layers": -1}, "--compute-cpu-layers -1: a whole number, or auto"),
        ({"compute_cpu_layers": "some"}, "--compute-cpu-layers some: a whole number"),
        ({"compute_cpu_layers": 1.5}, "--compute-cpu-layers 1.5: a whole number"),
        ({"batch_size": 2}, "--batch-size needs --num-batches beside it"),
        ({"num_batches": 2}, "--num-batches needs --batch-size beside it"),
        ({"batch_size": 2, "num_batches": 2, "rows": 4}, "--rows 4 and --batch-size 2 say the same thing"),
        ({"batch_size": 2, "num_batches": 2, "sweep_tokens": 64}, "--sweep-tokens 64 has no say beside --batch-size"),
    ],
)
def test_what_cannot_be_is_a_users_mistake(said: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError) as caught:
        asked_for(**{**NOTHING, **said})
    assert str(caught.value).startswith(why) and "\n" not in str(caught.value)


def test_layers_of_the_cpu_are_none_unless_said() -> None:
    assert asked_for(**NOTHING).cpu_layers == asked_for(**NOTHING, compute_cpu_layers=0).cpu_layers == 0
    assert asked_for(**NOTHING, compute_cpu_layers=7).cpu_layers == 7
    assert asked_for(**NOTHING, compute_cpu_layers="auto").cpu_layers is None


def test_a_cut_in_one_form_is_fine() -> None:
    assert asked_for(**{**NOTHING, "rows": 4, "sweep_tokens": 64}).rows == 4
    assert asked_for(**{**NOTHING, "batch_size": 2, "num_batches": 2}).batch_size == 2


def test_a_gpu_is_looked_for_only_where_one_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr("penstock.memory.device.compute_tier", lambda name: looked.append(name) or "gpu")
    check_here(Asked(weights=Shares(cpu=1.0), attention="cpu"), {"cpu": "4GiB"}, "auto")
    assert looked == []
    check_here(Asked(weights=Shares(gpu=1.0)), {"gpu": "4GiB"}, "auto")
    on_gpu = Policy(Shares(gpu=1.0), Shares(cpu=1.0), Shares(cpu=1.0), rows=1, sweep_tokens=1, batch_tokens=1)
    check_here(Asked(), {}, "auto", Placement(on_gpu, (), {}, 0, {}))
    assert looked == ["auto", "auto"]
    with pytest.raises(UserError, match="--gpu-memory is given, and this host has no gpu: leave it out"):
        check_here(Asked(), {"gpu": "4GiB"}, "cpu")
