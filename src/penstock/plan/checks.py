"""What cannot be meant: wishes that contradict each other, or want what a machine or a model lacks. No torch."""

from collections.abc import Collection

from penstock.errors import UserError
from penstock.plan.policy import TIERS, Tier
from penstock.plan.types import Asked, Footprint, Placement


def check_asked(asked: Asked) -> None:
    """Raise UserError where wishes contradict each other, on whatever machine."""
    _check_cut(asked)
    if not asked.cpu_layers:
        return  # where the planner chooses it leaves out what does not go with the rest
    given = _layers(asked)
    if asked.kv is not None and asked.kv.gpu > 0:
        raise UserError(f"{given} keeps all KV on the cpu, and --kv puts {asked.kv.gpu:.0%} on gpu: use cpu and disk")
    if asked.attention == "gpu":
        raise UserError(f"{given} attends to all KV on the cpu: leave --attention gpu out")
    if asked.activations is not None and asked.activations.gpu < 1:
        raise UserError(f"{given} leaves activations where they are computed: leave --activations out")


def check_host(asked: Asked, budgeted: Collection[Tier], compute: Tier) -> None:
    """As ``check_machine``, of this host, on which ``compute`` computes."""
    check_machine(asked, budgeted, "this host", [t for t in TIERS if t != "gpu" or compute == "gpu"], compute)


def check_machine(asked: Asked, budgeted: Collection[Tier], name: str, tiers: Collection[Tier], compute: Tier) -> None:
    """Raise UserError where something is to rest, or to be computed, on a tier that a machine does not have.

    budgeted: tiers that a budget is given for. name, tiers: the machine's.
    """
    for flag, shares in (("--weights", asked.weights), ("--kv", asked.kv), ("--activations", asked.activations)):
        for tier in TIERS:
            if shares is not None and shares.of(tier) > 0 and tier not in tiers:
                there = " and ".join(t for t in TIERS if t in tiers)
                raise UserError(f"{flag} puts {shares.of(tier):.0%} on {tier}, and {name} has none: use {there}")
    for tier in budgeted:
        if tier not in tiers:
            raise UserError(f"--{tier}-memory is given, and {name} has no {tier}: leave it out")
    if asked.attention == "gpu" != compute:
        raise UserError(f"--attention gpu: {name} has no gpu; leave it out")
    if asked.cpu_layers != 0 and compute == "cpu":
        raise UserError(f"{_layers(asked)}: {name} has no gpu, and the cpu computes all layers; leave it out")


def check_placed(placed: Placement, compute: Tier) -> None:
    """Raise UserError where a saved plan puts something on a gpu, or computes beside one, and there is none here."""
    if compute == "gpu":
        return
    policy = placed.policy
    shares = {"weights": policy.weights, "KV": policy.kv, "activations": policy.activations}
    on_gpu = [what for what, parts in shares.items() if parts.gpu > 0] + ["weights"] * ("gpu" in placed.homes)
    if on_gpu:
        raise UserError(f"--plan puts {on_gpu[0]} on gpu, and this host has none: plan again on this host")
    if policy.attention == "gpu":
        raise UserError("--plan has attention on gpu, and this host has none: plan again on this host")
    if policy.cpu_layers:
        raise UserError("--plan computes layers on cpu beside a gpu, and this host has none: plan again on this host")


def check_model(model: Footprint, asked: Asked, compute: Tier) -> None:
    """Raise UserError where a model cannot be computed as asked."""
    if model.transforms and (asked.attention == "cpu" != compute or asked.cpu_layers):
        flag = "--compute-cpu-layers" if asked.cpu_layers else "--attention cpu"
        raise UserError(
            f"{flag}: this model transforms keys where it computes, before they are attended to; leave it out"
        )
    if asked.cpu_layers and model.joined is not None:
        raise UserError(
            f"--compute-cpu-layers: {model.joined}, so all its layers are computed in one place; leave it out"
        )
    if asked.cpu_layers and asked.cpu_layers > model.decoders:
        raise UserError(
            f"--compute-cpu-layers {asked.cpu_layers}: this model has {model.decoders} decoder layers; give fewer"
        )


def _check_cut(asked: Asked) -> None:
    """Raise UserError unless the work is cut in one form: --rows, or --batch-size with --num-batches, or neither."""
    rows, batch_size, num_batches = asked.rows, asked.batch_size, asked.num_batches
    if (batch_size is None) != (num_batches is None):
        given, missing = ("--batch-size", "--num-batches") if num_batches is None else ("--num-batches", "--batch-size")
        raise UserError(f"{given} needs {missing} beside it; or use --rows alone")
    if rows is not None and batch_size is not None:
        raise UserError(f"--rows {rows} and --batch-size {batch_size} say the same thing in two ways; use one of them")
    if batch_size is not None and asked.sweep_tokens is not None:
        raise UserError(
            f"--sweep-tokens {asked.sweep_tokens} has no say beside --batch-size: leave it out, or use --rows instead"
        )


def _layers(asked: Asked) -> str:
    return f"--compute-cpu-layers {'auto' if asked.cpu_layers is None else asked.cpu_layers}"
