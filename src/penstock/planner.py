"""From a question to a plan: the model's shape, a machine, budgets, and a search that joins them."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from penstock.budgets import Budgets
from penstock.engine.build import Blueprint, blueprint
from penstock.engine.shape import model_shape
from penstock.errors import UserError
from penstock.machine import probe
from penstock.machine.machine import Machine
from penstock.machine.presets import machine_of
from penstock.memory.device import Device, open_device
from penstock.memory.offload import offload_root
from penstock.model import precision, source
from penstock.model.pages import Extent
from penstock.plan.baseline import baseline, check_expressible
from penstock.plan.case import Case
from penstock.plan.given import given_placement
from penstock.plan.plan import Plan
from penstock.plan.policy import TIERS, Tier
from penstock.plan.question import Question
from penstock.plan.reasons import explain, priced
from penstock.plan.shape import ModelShape
from penstock.plan.types import Ledger, Length
from penstock.profiling.measure import SHORT, measure_profile, with_disks
from penstock.profiling.profile import Profile, stale_reasons
from penstock.profiling.profile_file import load_profile, save_profile

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
        return Case(
            shape=model_shape(self.model),
            machine=self.machine,
            ledger=self.ledger,
            lengths=[Length(prompt, generated) for prompt, generated in question.requests],
            asked=question.asked,
            groups=[group.spec(self.model.block_tokens, self.model.precision.kv) for group in self.model.groups],
            chunking=not self.model.anatomy.recurrent,
            attention=question.attention,
            weight_bits=question.weight_bits,
            kv_bits=question.kv_bits,
            no_disk=question.no_disk or "disk" not in self.machine.memory,
            latency=question.objective == "latency",
            token_s=question.latency_s / question.job.mean_tokens if question.latency_s else None,
        )


def make_plan(model: str, question: Question, on_event: Event = lambda event: None) -> Plan:
    """The best plan for a question; on a machine that is not this host, also the price of a policy that is all given.

    on_event: as ``LLM``'s. Nothing is downloaded but a config, and nothing is loaded. Raises UserError for a model that
    cannot run, a machine that is none, and budgets that nothing fits, with the least that would do.
    """
    met = meet(model, question, on_event)
    case = met.case(question)
    by_flexgen = question.cost_model == "flexgen"
    if by_flexgen:
        check_expressible(case)  # before a search that would be for nothing
    cannot = _cannot(question, met.machine)
    if _is_given(question) and not met.here:
        plan = priced(case, met.machine, _job(question), given_placement(case))
    else:
        plan = explain(case, met.machine, _job(question))
    if by_flexgen:
        plan = replace(plan, baseline=baseline(case, plan.policy))
    return replace(plan, placement=None, why_not=cannot) if cannot else plan


def meet(model: str, question: Question, on_event: Event = lambda event: None) -> Planner:
    """The model and the machine that a question is about."""
    if question.machine is not None:
        machine = machine_of(question.machine)
        _check_tiers(question, machine)
        return Planner(_planned_for(model, question, machine), machine, _ledger(machine, question), False)
    with closing(open_device(question.device)) as device:
        plan = _planned_here(model, question, device)
        root = offload_root(question.offload_dir)
        machine = computing_on(device.compute_tier, host_machine(plan, root, on_event))
        ledger = Budgets(dict(question.budgets), device, root).ledger(plan.cached_bytes)
    _check_tiers(question, machine)
    if question.no_disk:
        ledger = replace(ledger, budget={**ledger.budget, "disk": 0})
    return Planner(plan, machine, ledger, True)


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


def _check_tiers(question: Question, machine: Machine) -> None:
    """Raise UserError where something is to rest, or to be computed, on a tier that the machine does not have."""
    given = {"--weights": question.weights, "--kv": question.kv, "--activations": question.activations}
    for flag, shares in given.items():
        for tier in TIERS:
            if shares is not None and shares.of(tier) > 0 and tier not in machine.memory:
                there = " and ".join(t for t in TIERS if t in machine.memory)
                raise UserError(
                    f"{flag} puts {shares.of(tier):.0%} on {tier}, and {machine.name} has none: use {there}"
                )
    if question.attention == "gpu" and machine.compute != "gpu":
        raise UserError(f"--attention gpu: {machine.name} has no gpu; leave it out")


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
    trusted = question.trust_remote_code
    found = planned_source(model, trusted)
    kind = "cuda" if compute == "gpu" else "cpu"
    chosen = precision.choose(question.dtype, found.checkpoint_dtype, kind, cpu_bfloat16)
    return blueprint(found, chosen, trust_remote_code=trusted, one_group=compute == "gpu")


def machine_for(question: Question, on_event: Event = lambda event: None) -> Machine:
    """The question's machine: the one it names, or this host as it was measured."""
    if question.machine is not None:
        return machine_of(question.machine)
    return host_machine(None, offload_root(question.offload_dir), on_event)


def host_machine(plan: Blueprint | None, offload: Path, on_event: Event) -> Machine:
    """This host as measured, with the disks of a checkpoint and of ``offload``; measured now, shortly, for want of it.

    A profile of another machine or of other versions is not used, and that is said.
    """
    profile = load_profile()
    if profile is not None and (reasons := stale_reasons(profile)):
        on_event({"kind": "note", "text": f"the stored profile is not used: {'; '.join(reasons)}"})
        profile = None
    extents = _extents(plan)
    checkpoint = Path(extents[0].path) if extents else None
    if profile is None:
        profile = _measured(extents, offload, on_event)
    elif profile.lacks(checkpoint, offload):
        on_event({"kind": "note", "text": "measuring a disk that was not measured before"})
        try:
            profile = with_disks(profile, extents or None, offload, SHORT, _progress(on_event))
            save_profile(profile)
        except UserError as refusal:
            on_event({"kind": "note", "text": f"{refusal}; planned as if it were the disk that was measured"})
    return profile.machine_at(checkpoint, offload)


def stored_machine(plan: Blueprint | None, offload: Path) -> Machine | None:
    """This host as it was measured; None where it was not, or by other versions or on another machine."""
    profile = load_profile()
    if profile is None or stale_reasons(profile):
        return None
    extents = _extents(plan)
    return profile.machine_at(Path(extents[0].path) if extents else None, offload)


def _extents(plan: Blueprint | None) -> list[Extent]:
    """Where the model's pages are read from."""
    return [e for page in plan.layout.pages for e in page.extents or ()] if plan is not None else []


def planned_source(model: str, trust_remote_code: bool) -> source.Source:
    """A model to plan for: of a hub id and of a config.json alone nothing but the config is needed."""
    path = Path(model).expanduser()
    is_config = path.suffix == ".json" and path.is_file()
    bare = path.is_dir() and not any(path.glob("*.safetensors")) and (path / "config.json").is_file()
    on_hub = not path.exists() and model != "demo" and path.suffix.lower() != ".gguf"
    return source.resolve(model, trust_remote_code=trust_remote_code, random_weights=is_config or bare or on_hub)


def _measured(extents: list[Extent], offload: Path, on_event: Event) -> Profile:
    on_event({"kind": "note", "text": "measuring this host, once, for about 15 s (penstock profile measures longer)"})
    profile = measure_profile(extents or None, offload, SHORT, _progress(on_event))
    save_profile(profile)
    return profile


def _progress(on_event: Event) -> Callable[[str, float], None]:
    return lambda what, part: on_event(
        {"kind": "load", "what": f"measuring {what}", "done": round(100 * part), "total": 100}
    )


def _computes_bfloat16(machine: Machine) -> bool:
    """Whether its cpu multiplies in bfloat16 faster than in float32."""
    products = machine.processors["cpu"].products if "cpu" in machine.processors else {}
    wide = [products[name].at(256) for name in products if name.startswith("float32")]
    return "bfloat16" in products and products["bfloat16"].at(256) > max(wide, default=0.0)


def _ledger(machine: Machine, question: Question) -> Ledger:
    """Budgets as asked, or a machine's own memory less a margin."""
    budget: dict[Tier, int] = {}
    for tier in TIERS:
        asked = question.budgets.get(tier)
        if asked is not None and machine.memory.get(tier) is None:
            raise UserError(f"--{tier}-memory is given, and {machine.name} has no {tier}: leave it out")
        budget[tier] = int(machine.memory.get(tier, 0) * (1 - _MARGIN)) if asked is None else asked
    if question.no_disk:
        budget["disk"] = 0
    return Ledger(budget, {"cpu": min(_INTERPRETER, budget["cpu"])})


def _is_given(question: Question) -> bool:
    """Whether weights, KV and batch shape are all fixed, so that there is nothing to search."""
    shape = question.rows is not None or question.batch_size is not None
    return question.weights is not None and question.kv is not None and shape


def _cannot(question: Question, machine: Machine) -> str | None:
    """Why no engine here executes a plan for this question; None where one does."""
    if question.attention == "cpu" and machine.compute == "gpu":
        return "attention on the cpu beside a gpu is not built yet"
    if question.weight_bits is not None or question.kv_bits is not None:
        return "packed weights and KV are not built yet"
    return None if question.machine is None else f"it is for {question.machine}, not for this host"


def _job(question: Question) -> str:
    requests = question.requests
    prompt = sum(p for p, _ in requests) / len(requests)
    new = sum(n for _, n in requests) / len(requests)
    prompts = "1 prompt" if len(requests) == 1 else f"{len(requests):,} prompts"
    return f"{prompts} of {prompt:,.0f} tokens, {new:,.0f} to generate"
