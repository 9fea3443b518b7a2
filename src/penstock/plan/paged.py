"""A model's shape and a machine as the comparison of paging ways takes them."""

from collections.abc import Mapping

from penstock.errors import UserError
from penstock.machine.machine import Curve, Link, LinkName, Machine, Processor
from penstock.plan.paging import Paged
from penstock.plan.policy import Tier
from penstock.plan.routed import Routed
from penstock.plan.shape import ModelShape

_ROWS = tuple(2**power for power in range(14))


def paged(shape: ModelShape, machine: Machine, context: int, budgets: Mapping[Tier, int | None]) -> Paged:
    """The model on the tier that computes and the next slower one, in decode at a context of so many tokens.

    budgets: bytes allowed per tier, None where the machine's memory holds; that of the disk is for files of penstock's
    own, and layers are read from the checkpoint. Raises UserError where the machine lacks a
    link between the two tiers, or the model has no layers.
    """
    layers = len({page.layer for page in shape.pages if page.layer is not None})
    if not layers:
        raise UserError(f"{shape.name} has no layers that could be paged")
    fast = machine.compute
    slow: Tier = "cpu" if fast == "gpu" else "disk"
    inside = [page for page in shape.pages if page.layer is not None]
    head = sum(page.nbytes for page in shape.pages if page.layer is None and not page.table)
    seen = sum(layer.kv_bytes * min(layer.window or context, context) for layer in shape.attention)
    given = {tier: None if tier == "disk" else budgets.get(tier) for tier in (fast, slow)}
    memory = {tier: machine.memory.get(tier, 0) if nbytes is None else nbytes for tier, nbytes in given.items()}
    slow_processor = machine.processors.get(slow)
    return Paged(
        layers=layers,
        layer_bytes=-(-sum(page.nbytes for page in inside) // layers),
        row_bytes=-(-seen // layers),
        new_bytes=-(-shape.kv_bytes // layers),
        rest_bytes=shape.footprint.core + head,
        hidden_bytes=shape.hidden_bytes,
        weight_bits=shape.weight_bits,
        fast=fast,
        slow=slow,
        memory=memory,
        inward=_link(machine, slow, fast),
        outward=_link(machine, fast, slow),
        speed=_speed(shape, machine.processors[fast], context),
        slow_speed=None if slow_processor is None else _speed(shape, slow_processor, context),
        dequantise_per_s=machine.processors[fast].dequantise_per_s,
    )


def decode_s(shape: ModelShape, processor: Processor, context: int, rows: int) -> float:
    """Seconds of one token for each of some rows beside one processor, at a context of so many tokens."""
    products = processor.curve(shape.arithmetic)
    seconds = processor.sweep_s + rows * (processor.row_s + shape.vocabulary * processor.logit_s)
    for page in shape.pages:
        if page.table:
            continue
        seconds += processor.visit_s
        if page.experts:
            routed = Routed(rows, shape.experts_chosen, shape.experts)
            seconds += page.weights * routed.touched * routed.product_s(products)
            seconds += routed.besides_s(page.experts, shape.hidden_bytes, processor)
        else:
            seconds += 2.0 * page.weights * rows / products.at(rows)
    for layer in shape.attention:
        keys = min(layer.window or context, context)
        reading = layer.kv_bytes * keys / processor.kv_bytes_per_s
        seconds += rows * max(reading, layer.pair_flops * keys / processor.attention.at(1))
    return seconds + rows * shape.traffic_bytes / processor.activation_bytes_per_s


def _speed(shape: ModelShape, processor: Processor, context: int) -> Curve:
    return Curve(tuple((float(rows), rows / decode_s(shape, processor, context, rows)) for rows in _ROWS))


def _link(machine: Machine, start: Tier, end: Tier) -> Link:
    names: dict[tuple[Tier, Tier], LinkName] = {
        ("disk", "cpu"): "disk→cpu",
        ("cpu", "gpu"): "cpu→gpu",
        ("gpu", "cpu"): "gpu→cpu",
        ("cpu", "disk"): "cpu→disk",
    }
    name = names[start, end]
    if name not in machine.links:
        raise UserError(f"machine {machine.name} has no link {name}, which paging needs: add it to the machine file")
    return machine.links[name]
