"""How many layers the cpu computes beside a gpu if nobody says."""

from dataclasses import replace

import pytest
from tests.plan.made import beside_a_gpu

from penstock.errors import UserError
from penstock.machine.machine import Curve
from penstock.plan.case import Case
from penstock.plan.policy import Shares
from penstock.plan.reasons import explain
from penstock.plan.splits import searched
from penstock.plan.types import Asked, Length

AUTO = Asked(cpu_layers=None)


def linked(upload_bytes_per_s: float, asked: Asked = AUTO, gpu_mib: int = 140, rows: int = 2) -> Case:
    """A gpu that computes ten times as fast as the cpu, and holds a part of the model's 256 MiB."""
    made = beside_a_gpu([Length(64, 32)] * rows, gpu_mib, 4000, asked)
    machine, slow = made.machine, made.machine.processors["cpu"]
    fast = replace(slow, products={"float32": Curve.flat(1e12)}, visit_s=1e-5)
    links = {**machine.links, "cpu→gpu": replace(machine.links["cpu→gpu"], bytes_per_s=upload_bytes_per_s)}
    return replace(made, machine=replace(machine, links=links, processors={"gpu": fast, "cpu": slow}))


def test_layers_are_computed_on_the_cpu_where_that_is_faster() -> None:
    found = searched(linked(1e9))
    policy = found.best.placement.policy
    assert 0 < policy.cpu_layers < 8 and found.apart is not None
    assert found.best.predicted.total_tok_s > 1.5 * found.apart.predicted.total_tok_s
    assert found.apart.placement.policy.cpu_layers == 0
    plan = explain(linked(1e9), linked(1e9).machine, "a job")
    (other,) = (one for one in plan.runners_up if one.name == "all layers on the gpu")
    assert other.tok_s is not None and other.tok_s < plan.predicted.total_tok_s
    assert not any(one.name == "static split" for one in plan.runners_up)


def test_what_would_help_may_be_computed_elsewhere() -> None:
    made = linked(1e9)
    plan = explain(made, made.machine, "a job")
    (more,) = (gain for gain in plan.gains if gain.change == "one more GiB of gpu")  # which holds all layers
    assert more.tok_s > 1.2 * plan.predicted.total_tok_s


def test_no_number_of_layers_does_much_better() -> None:
    chosen = searched(linked(1e9)).worth
    each = [searched(linked(1e9, Asked(cpu_layers=layers, cpu_tokens=64))).worth for layers in range(1, 9)]
    assert chosen >= 0.95 * max(each)


def test_all_are_computed_on_the_gpu_where_that_is_faster() -> None:
    for made in (linked(1e11), linked(1e9, gpu_mib=1000)):
        found = searched(made)
        assert found.best.placement.policy.cpu_layers == 0 and found.apart is not None
        assert found.best.predicted.total_tok_s >= 0.97 * found.apart.predicted.total_tok_s


@pytest.mark.parametrize(
    "asked",
    [replace(AUTO, kv=Shares(gpu=1.0)), replace(AUTO, attention="gpu"), replace(AUTO, activations=Shares(cpu=1.0))],
)
def test_nothing_is_split_beside_what_does_not_go_with_it(asked: Asked) -> None:
    found = searched(linked(1e9, asked))
    assert found.best.placement.policy.cpu_layers == 0 and found.apart is None


def test_models_that_cannot_be_split_are_not() -> None:
    made = linked(1e9)
    for why in ({"joined": "layers of this model share weights"}, {"transforms": True}):
        joined = replace(made, shape=replace(made.shape, footprint=replace(made.shape.footprint, **why)))  # type: ignore[arg-type]  # either
        assert searched(joined).best.placement.policy.cpu_layers == 0


def test_where_nothing_fits_the_least_without_a_split_is_told() -> None:
    made = linked(1e9, gpu_mib=1)
    told = []
    for asked in (AUTO, Asked()):
        with pytest.raises(UserError, match=r"^--gpu-memory .* The least that works") as refused:
            searched(replace(made, asked=asked))
        told.append(str(refused.value))
    assert told[0] == told[1]
