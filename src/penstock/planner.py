"""From a question to a plan: the model's shape, a machine, budgets, and a search that joins them."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from penstock.bits import Bits
from penstock.blueprints import Blueprints
from penstock.budgets import Budgets
from penstock.engine.build import Blueprint
from penstock.engine.caching import check_packed
from penstock.engine.shape import model_shape
from penstock.engine.warming import warm
from penstock.errors import UserError
from penstock.machine import probe
from penstock.machine.machine import Machine
from penstock.machine.presets import machine_of
from penstock.memory.device import Device, open_device
from penstock.memory.offload import offload_root
from penstock.model import source, tokenizer
from penstock.model.packing import packing_of
from penstock.model.pages import Extent
from penstock.plan.baseline import baseline, check_expressible
from penstock.plan.case import Case
from penstock.plan.checks import check_asked, check_host, check_machine, check_model
from penstock.plan.given import given_placement
from penstock.plan.plan import Plan
from penstock.plan.policy import TIERS, Tier
from penstock.plan.question import Question
from penstock.plan.reasons import decided, explain, priced
from penstock.plan.remarks import bounds, job, nothing_beside, too_long
from penstock.plan.rule import decide
from penstock.plan.shape import ModelShape
from penstock.plan.sizes import JITTER_BYTES
from penstock.plan.split_cost import with_turning_point
from penstock.plan.types import Ledger
from penstock.profiling import here

Event = Callable[[Mapping[str, Any]], None]

_INTERPRETER = 512 << 20  # what Python, torch and transformers take on a machine that is not at hand
_MARGIN = 0.04  # of memory that is not at hand, left to its system


@dataclass(frozen=True, slots=True)
class Planner:
    """A model and a machine, met. here: the machine is this host."""

    model: Blueprint
    machine: Machine
    ledger: Ledger
    here: bool

    def case(self, question: Question) -> Case:
        """The search's input for a question about them."""
        shape = model_shape(self.model)
        return Case(
            shape=shape,
            machine=self.machine,
            ledger=self.ledger,
            lengths=question.rows_of_job(sharing=not self.model.anatomy.recurrent),
            asked=with_turning_point(question.asked, shape, self.machine),
            groups=self.model.specs,
            chunking=not self.model.anatomy.recurrent,
            weight_bits=question.weight_bits,
            lm_head_bits=question.lm_head_bits,
            kv_bits=question.kv_bits,
            no_disk=question.no_disk or "disk" not in self.machine.memory,
            latency=question.objective == "latency",
            token_s=question.most_sweep_s,
        )


def make_plan(model: str, question: Question, on_event: Event = lambda event: None) -> Plan:
    """The best plan for a question, or the price of a policy that is all given, also of one that does not fit.

    on_event: as ``LLM``'s. Nothing is downloaded but a config, and nothing is loaded. Raises UserError for a model that
    cannot run, a machine that is none, and budgets that nothing fits, with the least that would do.
    """
    met = meet(model, question, on_event)
    case = met.case(question)
    check_model(case.shape.footprint, case.asked, case.compute)
    by_flexgen = question.cost_model == "flexgen"
    if by_flexgen:
        check_expressible(case)  # before a search that would be for nothing
    cannot = _cannot(question, met.machine)
    runs = met.here and cannot is None
    plan = _given(case, question, runs) if question.is_given else _searched(case, question)
    if by_flexgen:
        plan = replace(plan, baseline=baseline(case, plan.policy))
    told = (
        *bounds(question, plan.predicted),
        *too_long(question, met.model.context),
        *nothing_beside(question, plan.memory),
    )
    plan = replace(plan, notes=(*plan.notes, *told))
    return replace(plan, placement=None, why_not=cannot) if cannot else plan


def _given(case: Case, question: Question, runs: bool) -> Plan:
    """A policy that leaves nothing to search: what a run on this host makes of it, where one would take it."""
    if runs:
        try:
            placement = decide(case.shape.footprint, case.job, case.ledger, case.asked, case.compute, 0)
        except UserError as refusal:
            return _refused(case, question, refusal)
        return decided(case, case.machine, job(question), placement)
    return priced(case, case.machine, job(question), given_placement(case))


def _searched(case: Case, question: Question) -> Plan:
    """The best plan; where nothing fits with what a person fixed, that is priced as it stands."""
    try:
        return explain(case, case.machine, job(question))
    except UserError as refusal:
        if not question.has_wishes:
            raise
        return _refused(case, question, refusal)


def _refused(case: Case, question: Question, refusal: UserError) -> Plan:
    """The price of what a run refuses, with the reason that it would give."""
    plan = priced(case, case.machine, job(question), given_placement(case))
    if plan.fits:
        return replace(plan, placement=None, why_not=str(refusal))
    return replace(plan, notes=(str(refusal),))


def meet(model: str, question: Question, on_event: Event = lambda event: None) -> Planner:
    """The model and the machine that a question is about; what was asked is checked before this host is measured."""
    asked, budgeted = question.asked, [tier for tier, nbytes in question.budgets.items() if nbytes is not None]
    check_asked(asked)
    if question.machine is not None:
        machine = machine_of(question.machine)
        check_machine(asked, budgeted, machine.name, machine.memory, machine.compute)
        plan = _planned_for(model, question, machine)
        return Planner(plan, machine, _ledger(machine, question, plan), False)
    with closing(open_device(question.device)) as device:
        compute = device.compute_tier
        check_host(asked, budgeted, compute)
        plan = _planned_here(model, question, device)
        # what a run has in memory before it counts what is left: its plan must leave as much
        warm(plan, device.torch_device, question.asked.attention, question.asked.cpu_layers != 0)
        known_words = tokenizer.load(plan.source, trust_remote_code=question.trust_remote_code)
        root = offload_root(question.offload_dir)
        budgets, cached = Budgets(dict(question.budgets), device, root), page_cache_bytes(plan, question.disk_memory)
        machine = computing_on(compute, host_machine(plan, root, on_event, budgets.ledger(cached)))
        ledger = _at_another_start(budgets.ledger(cached))
        del known_words
    if question.no_disk:
        ledger = replace(ledger, budget={**ledger.budget, "disk": 0})
    return Planner(plan, machine, ledger, True)


def _at_another_start(ledger: Ledger) -> Ledger:
    """What another process finds taken, at most."""
    return replace(ledger, taken={**ledger.taken, "cpu": ledger.taken["cpu"] + JITTER_BYTES})


def computing_on(compute: Tier, machine: Machine) -> Machine:
    """The machine with no processors but its cpu and the one that computes; a gpu that does not compute is left out.

    Raises UserError where nothing is known of the one that computes.
    """
    if compute not in machine.processors:
        raise UserError(f"{machine.name} was measured without its {compute}: penstock profile --force measures again")
    if compute == "gpu" or "gpu" not in machine.processors:
        return machine
    return replace(
        machine,
        memory={tier: nbytes for tier, nbytes in machine.memory.items() if tier != "gpu"},
        processors={"cpu": machine.processors["cpu"]},
    )


def shape_and_machine(
    model: str, question: Question, on_event: Event = lambda event: None
) -> tuple[ModelShape, Machine]:
    """A model's shape and the question's machine: this host with the disk that the model is read from."""
    met = meet(model, question, on_event)
    return model_shape(met.model), met.machine


def shape_of(model: str, question: Question) -> ModelShape:
    """A model's shape, in the precision that the question's machine runs it in."""
    if question.machine is not None:
        return model_shape(_planned_for(model, question, machine_of(question.machine)))
    with closing(open_device(question.device)) as device:
        return model_shape(_planned_here(model, question, device))


def _planned_for(model: str, question: Question, machine: Machine) -> Blueprint:
    """The model as a machine that is not this host would run it."""
    return _blueprint(model, question, machine.compute, _computes_bfloat16(machine))


def _planned_here(model: str, question: Question, device: Device) -> Blueprint:
    """The model as this host's device runs it."""
    return _blueprint(model, question, device.compute_tier, probe.cpu_computes_bfloat16())


def _blueprint(model: str, question: Question, compute: Tier, cpu_bfloat16: bool) -> Blueprint:
    trusted, on_gpu = question.trust_remote_code, compute == "gpu"
    found, kind = planned_source(model, trusted), "cuda" if on_gpu else "cpu"
    made = Blueprints(found, question.dtype, kind, cpu_bfloat16, on_gpu, trusted)
    return made.packed(packing_of(Bits(question.weight_bits, question.lm_head_bits, question.kv_bits)))


def host_machine(plan: Blueprint | None, offload: Path, on_event: Event, ledger: Ledger | None = None) -> Machine:
    """This host as measured, with the disks of a checkpoint and of ``offload``; measured now, shortly, for want of it.

    ledger: what a measurement may take, None: what it likes. Raises UserError as ``profiling.here`` does.
    """
    room: here.Room | None = None
    if ledger is not None:
        room = {tier: ledger.free(tier) for tier in TIERS if tier != "gpu" or ledger.budget.get(tier)}
    return here.host_machine(_extents(plan), offload, on_event, room)


def stored_machine(plan: Blueprint | None, offload: Path) -> Machine | None:
    """This host as it was measured; None where it was not, or by other versions or on another machine."""
    return here.stored_machine(_extents(plan), offload)


def _extents(plan: Blueprint | None) -> list[Extent]:
    """Where the model's pages are read from."""
    return [e for page in plan.layout.pages for e in page.extents or ()] if plan is not None else []


def page_cache_bytes(plan: Blueprint, asked: int | None) -> int:
    """Of the disk's budget, where there is one, what pages take that are not read from the checkpoint as they are.

    Raises UserError where packed pages take more.
    """
    check_packed(plan, asked)
    converted = plan.converted_bytes
    if asked is None or converted > asked or plan.source.kind == "random":
        return 0 if asked is None else plan.packed_bytes
    return converted


def planned_source(model: str, trust_remote_code: bool) -> source.Source:
    """A model to plan for: of a hub id and of a config.json alone nothing but the config is needed."""
    path = Path(model).expanduser()
    is_config = path.suffix == ".json" and path.is_file()
    bare = path.is_dir() and not any(path.glob("*.safetensors")) and (path / "config.json").is_file()
    on_hub = not path.exists() and model != "demo" and path.suffix.lower() != ".gguf"
    return source.resolve(model, trust_remote_code=trust_remote_code, random_weights=is_config or bare or on_hub)


def _computes_bfloat16(machine: Machine) -> bool:
    """Whether its cpu multiplies in bfloat16 faster than in float32."""
    products = machine.processors["cpu"].products if "cpu" in machine.processors else {}
    wide = [products[name].at(256) for name in products if name.startswith("float32")]
    return "bfloat16" in products and products["bfloat16"].at(256) > max(wide, default=0.0)


def _ledger(machine: Machine, question: Question, plan: Blueprint) -> Ledger:
    """Budgets as asked, or a machine's own memory less a margin, where the checkpoint lies on its disk already."""
    budget: dict[Tier, int] = {}
    for tier in TIERS:
        asked = question.budgets.get(tier)
        budget[tier] = int(machine.memory.get(tier, 0) * (1 - _MARGIN)) if asked is None else asked
    taken: dict[Tier, int] = {"cpu": _INTERPRETER}
    if question.no_disk:
        budget["disk"] = 0
    elif question.disk_memory is None and "disk" in machine.memory:
        taken["disk"] = sum(page.nbytes for page in plan.layout.pages)
    else:
        taken["disk"] = page_cache_bytes(plan, question.disk_memory)
    return Ledger(budget, taken)


def _cannot(question: Question, machine: Machine) -> str | None:
    """Why no engine here executes a plan for this question; None where one does."""
    return None if question.machine is None else f"it is for {question.machine}, not for this host"
