"""Wishes that cannot be: with each other, on a machine, or with a model."""

from dataclasses import replace

import pytest

from penstock.errors import UserError
from penstock.plan.checks import check_asked, check_host, check_machine, check_model, check_placed
from penstock.plan.policy import Policy, Shares, Tier
from penstock.plan.types import Asked, Footprint, Placement

CPU = Shares(cpu=1.0)
MODEL = Footprint([1 << 20] * 2, frozenset(), 0, 0, 0, 0, 16, layers=[0, 1])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked(batch_size=4), "--batch-size needs --num-batches beside it"),
        (Asked(batch_size=4, num_batches=2, rows=8), "--rows 8 and --batch-size 4 say the same thing in two ways"),
        (
            Asked(cpu_layers=3, kv=Shares(gpu=0.5, cpu=0.5)),
            "--compute-cpu-layers 3 keeps all KV on the cpu, and --kv puts 50% on gpu: use cpu and disk",
        ),
        (
            Asked(cpu_layers=3, attention="gpu"),
            "--compute-cpu-layers 3 attends to all KV on the cpu: leave --attention gpu out",
        ),
        (
            Asked(cpu_layers=3, activations=Shares(cpu=1.0)),
            "--compute-cpu-layers 3 leaves activations where they are computed: leave --activations out",
        ),
    ],
)
def test_wishes_that_contradict_each_other_are_refused(asked: Asked, said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        check_asked(asked)


def test_what_goes_together_is_taken() -> None:
    check_asked(Asked(cpu_layers=3, kv=Shares(cpu=0.5, disk=0.5), attention="cpu", activations=Shares(gpu=1.0)))
    check_asked(Asked(cpu_layers=None, kv=Shares(gpu=1.0), attention="gpu"))  # the planner leaves all layers there
    check_asked(Asked(batch_size=2, num_batches=2))


@pytest.mark.parametrize(
    ("asked", "budgeted", "said"),
    [
        (Asked(kv=Shares(gpu=0.5, cpu=0.5)), [], "--kv puts 50% on gpu, and this host has none: use cpu and disk"),
        (Asked(), ["cpu", "gpu"], "--gpu-memory is given, and this host has no gpu: leave it out"),
        (Asked(attention="gpu"), [], "--attention gpu: this host has no gpu; leave it out"),
        (Asked(cpu_layers=3), [], "--compute-cpu-layers 3: this host has no gpu"),
        (Asked(cpu_layers=None), [], "--compute-cpu-layers auto: this host has no gpu"),
    ],
)
def test_what_a_host_without_a_gpu_lacks_is_refused(asked: Asked, budgeted: list[Tier], said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        check_host(asked, budgeted, "cpu")
    check_host(asked, budgeted, "gpu")


def test_a_machine_may_lack_a_disk() -> None:
    with pytest.raises(UserError, match=r"^--weights puts 40% on disk, and toy has none: use gpu and cpu"):
        check_machine(Asked(weights=Shares(cpu=0.6, disk=0.4)), [], "toy", ("gpu", "cpu"), "gpu")


POLICY = Policy(CPU, CPU, CPU, rows=2, sweep_tokens=64, batch_tokens=64)
PLACED = Placement(POLICY, ("cpu", "disk"), {"cpu": 1 << 20}, 0, {"cpu": 1 << 20})


@pytest.mark.parametrize(
    ("placed", "said"),
    [
        (replace(PLACED, policy=replace(POLICY, activations=Shares(gpu=1.0))), "puts activations on gpu"),
        (replace(PLACED, policy=replace(POLICY, kv=Shares(gpu=0.1, cpu=0.9))), "puts KV on gpu"),
        (replace(PLACED, homes=("gpu", "disk")), "puts weights on gpu"),
        (replace(PLACED, policy=replace(POLICY, attention="gpu")), "has attention on gpu"),
        (replace(PLACED, policy=replace(POLICY, cpu_layers=1)), "computes layers on cpu beside a gpu"),
    ],
)
def test_a_plan_that_needs_a_gpu_is_refused_without_one(placed: Placement, said: str) -> None:
    assert placed.needs_gpu and not PLACED.needs_gpu
    with pytest.raises(UserError, match=f"^--plan {said}, and this host has none: plan again on this host$"):
        check_placed(placed, "cpu")
    check_placed(placed, "gpu")
    check_placed(PLACED, "cpu")


def test_layers_that_a_model_does_not_have_are_refused() -> None:
    check_model(MODEL, Asked(cpu_layers=2), "gpu")
    with pytest.raises(UserError, match=r"^--compute-cpu-layers 3: this model has 2 decoder layers; give fewer"):
        check_model(MODEL, Asked(cpu_layers=3), "gpu")


def test_models_that_are_computed_in_one_place_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="--compute-cpu-layers: layers of this model share weights, so all its layers"):
        check_model(replace(MODEL, joined="layers of this model share weights"), Asked(cpu_layers=1), "gpu")
    transforms = replace(MODEL, transforms=True)
    with pytest.raises(UserError, match="--compute-cpu-layers: this model transforms keys"):
        check_model(transforms, Asked(cpu_layers=1), "gpu")
    with pytest.raises(UserError, match="--attention cpu: this model transforms keys"):
        check_model(transforms, Asked(attention="cpu"), "gpu")
    check_model(transforms, Asked(attention="cpu"), "cpu")
