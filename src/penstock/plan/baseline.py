"""FlexGen's equations asked about the same model, machine and policy as a plan, to be told beside it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from penstock.errors import UserError
from penstock.machine.machine import Machine
from penstock.plan.case import Case
from penstock.plan.flexgen import FlexGenPrediction, best_flexgen, predict_flexgen
from penstock.plan.flexgen_group import FlexGenPolicy, OptShape
from penstock.plan.linear import Infeasible
from penstock.plan.policy import TIERS, Policy, Tier
from penstock.plan.shape import NARROWEST_DTYPE_BITS, ModelShape
from penstock.units import format_bytes

_ALIKE = 0.02  # sizes that differ by less are the same: vectors are left out of them


@dataclass(frozen=True, slots=True)
class Said:
    """A policy in FlexGen's form and what the equations say of it."""

    policy: FlexGenPolicy
    predicted: FlexGenPrediction


@dataclass(frozen=True, slots=True)
class Baseline:
    """What FlexGen's model says. of_policy: of the plan's own; best: of the placement that its linear program finds for
    as many rows, None where it finds none. assumes: what it takes this model for, where that is something else."""

    of_policy: Said
    best: Said | None
    assumes: Sequence[str]


def baseline(case: Case, policy: Policy) -> Baseline:
    """FlexGen's model beside a plan's policy, within the same budgets.

    Raises UserError where the model is none that its equations can express, or the machine has no gpu.
    """
    shape, machine = opt_shape(case.shape), _budgeted(case)
    asked = flexgen_policy(policy, case.prompt)
    prompt, generate = round(case.prompt), max(1, round(case.generated))
    of_policy = Said(asked, predict_flexgen(shape, machine, asked, prompt, generate))
    try:
        best = Said(
            *best_flexgen(
                shape,
                machine,
                asked.batch_size,
                asked.num_batches,
                prompt,
                generate,
                cpu_attention=None if case.asked.attention is None else case.asked.attention == "cpu",
                weight_bits=asked.weight_bits,
                kv_bits=asked.kv_bits,
            )
        )
    except Infeasible:
        best = None
    return Baseline(of_policy, best, tuple(_assumptions(case, shape)))


def check_expressible(case: Case) -> None:
    """Raise UserError where ``baseline`` would: of a case alone, before any plan is made for it."""
    opt_shape(case.shape)
    if "gpu" not in case.machine.processors:
        raise UserError(
            f"--cost-model flexgen: {case.machine.name} has no gpu, and FlexGen's equations compute on one; "
            "take the default, or --machine"
        )
    if case.asked.cpu_layers != 0:
        raise UserError("--cost-model flexgen: FlexGen computes all layers on the gpu; leave --compute-cpu-layers out")


def opt_shape(shape: ModelShape) -> OptShape:
    """The model as one of OPT's kind, with as many weights in a layer: what is not 4·hidden² of them makes its ffn.

    Raises UserError, by name, for experts, recurrent state, and layers without attention or of too few weights.
    """
    layers = len({page.layer for page in shape.pages if page.layer is not None})
    refusal = f"--cost-model flexgen: {shape.name} has %s, which FlexGen's equations cannot express; take the default"
    if shape.experts:
        raise UserError(refusal % f"{shape.experts} experts a layer")
    if shape.footprint.state:
        raise UserError(refusal % "recurrent state")
    if not layers or len(shape.attention) != layers:
        raise UserError(refusal % f"{layers} layers of which {len(shape.attention)} keep keys and values of their own")
    item = 4 if shape.arithmetic.startswith("float32") else 2
    hidden = shape.hidden_bytes // item
    weights = sum(page.weights for page in shape.pages if page.layer is not None) / layers
    ffn = round((weights - 4 * hidden**2) / (2 * hidden))
    if ffn < 1:
        raise UserError(refusal % f"{weights:,.0f} weights a layer, fewer than the 4·{hidden}² of attention")
    return OptShape(
        layers,
        hidden,
        ffn,
        max(1, shape.heads),
        max(NARROWEST_DTYPE_BITS, round(shape.weight_bits)) // 8,
        shape.arithmetic,
    )


def flexgen_policy(policy: Policy, prompt: float) -> FlexGenPolicy:
    """A policy in FlexGen's form: a call's prompts are a batch, and the rows in flight a group of such batches."""
    batch = policy.batch_size or max(1, min(policy.rows, int(policy.batch_tokens / prompt)))
    return FlexGenPolicy(
        weights=policy.weights,
        kv=policy.kv,
        activations=policy.activations,
        batch_size=batch,
        num_batches=policy.num_batches or -(-policy.rows // batch),
        cpu_attention=policy.attention == "cpu",
        weight_bits=policy.weight_bits,
        kv_bits=policy.kv_bits,
    )


def _budgeted(case: Case) -> Machine:
    """The machine with the memory that a plan may take of it."""
    memory: Mapping[Tier, int] = {t: case.ledger.free(t) for t in TIERS if case.ledger.free(t) > 0}
    return replace(case.machine, memory=memory)


def _assumptions(case: Case, shape: OptShape) -> Iterator[str]:
    """What differs between a model and a job and what the equations take them for, a line each."""
    model = case.shape
    kept = sum(2 * layer.packed_elements or layer.kv_bytes for layer in model.attention) / shape.layers
    if abs(shape.kv_bytes - kept) > _ALIKE * kept:
        yield (
            f"every head keeps keys and values of its own, {format_bytes(shape.kv_bytes)} a token and layer; "
            f"this model keeps {format_bytes(round(kept))}"
        )
    if any(layer.window for layer in model.attention):
        yield "every layer attends to the whole context; this model has windows"
    if shape.ffn != 4 * shape.hidden:
        yield f"a layer is 4·hidden² and two MLP matrices: an ffn of {shape.ffn:,} gives it this model's weights"
    if model.vocabulary:
        yield f"embeddings, the LM head ({model.vocabulary:,} logits) and sampling cost nothing"
    lengths = {(one.prompt, one.generated) for one in case.lengths}
    if len(lengths) > 1:
        yield "all prompts and answers are of the mean length, and every group of rows is full"
