"""Which placement a run gets: a saved plan's, the one that was asked for, or the best that a search finds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

from penstock.bits import Bits
from penstock.engine.build import Blueprint
from penstock.engine.shape import model_shape
from penstock.errors import UserError
from penstock.machine.machine import Machine
from penstock.model.fingerprint import fingerprint
from penstock.model.packing import Packing, packing_of
from penstock.plan.beginnings import Beginnings
from penstock.plan.case import Case
from penstock.plan.plan import Prediction
from penstock.plan.policy import TIERS, Tier
from penstock.plan.rule import decide
from penstock.plan.saved import Identity, SavedPlan, check
from penstock.plan.sizes import least_mib
from penstock.plan.split_cost import with_turning_point
from penstock.plan.splits import searched
from penstock.plan.types import Asked, Job, Ledger, Length, Placement
from penstock.plan.virtual import VirtualRun
from penstock.plan.wish import hidden
from penstock.planner import host_machine, stored_machine
from penstock.units import format_bytes, format_seconds

Event = Callable[[Mapping[str, Any]], None]

_SKETCHES = 10
_MOST_LENGTHS = 16384  # rows that a prediction looks at; a longer job goes on as they do


@dataclass(frozen=True, slots=True)
class Placing:
    """Chooses placements for the jobs of one model. compute: the tier that computes. offload: where KV on disk goes."""

    model: Blueprint
    asked: Asked
    saved: SavedPlan | None
    compute: Tier
    offload: Path
    event: Event

    @property
    def may_split(self) -> bool:
        """Whether the cpu may have layers to compute beside a gpu."""
        return self.asked.cpu_layers != 0 if self.saved is None else self.saved.placement.policy.cpu_layers > 0

    @property
    def attention(self) -> Tier | None:
        """The tier that attends to KV; None where that is still to be planned."""
        return self.asked.attention if self.saved is None else self.saved.placement.policy.attention or self.compute

    def choose(self, job: Job, ledger: Callable[[], Ledger]) -> Placement:
        """The placement for a job. ledger: budgets and what is taken of them now.

        The machine is measured where it never was and there is something to search. Raises UserError, with the least
        that works, where a budget is too small.
        """
        footprint = self.model.footprint()
        if self.saved is not None:
            return self._as_saved(self.saved, ledger())
        try:
            rough = decide(footprint, job, ledger(), self.asked, self.compute, 0)
        except UserError:
            machine = None if self.asked.is_given or self.compute == "cpu" else self._known(self._measured(ledger()))
            if machine is None:
                raise
            # what is too large for a gpu may be computed, or attended to, on the cpu beside it
            return searched(self._case(machine, job, ledger()), _SKETCHES).best.placement
        if self.asked.is_given:
            return rough if not self.asked.cpu_layers else self._turned(job, ledger())
        holds_all = self._holds_all(rough, job)
        machine = self._known(self._stored() if holds_all else self._measured(ledger()))
        if machine is None:
            return rough
        case = self._case(machine, job, ledger())
        if holds_all:
            return decide(footprint, job, case.ledger, case.asked, self.compute, hidden(case))
        return searched(case, _SKETCHES).best.placement

    def _turned(self, job: Job, ledger: Ledger) -> Placement:
        """What is given, with layers computed on the cpu in sweeps as large as this host, where it was measured, does
        well to."""
        machine, asked = self._known(self._stored()), self.asked
        if machine is not None:
            asked = with_turning_point(asked, model_shape(self.model), machine)
        return decide(self.model.footprint(), job, ledger, asked, self.compute, 0)

    def predict(self, placement: Placement, job: Job, budget: Mapping[Tier, int]) -> Prediction | None:
        """What a job will do as it is placed; None where this machine was never measured."""
        machine = self._known(self._stored())
        if machine is None:
            return None
        try:
            return VirtualRun(self._case(machine, job, Ledger(budget, {})), placement).predict(_lengths(job))
        except UserError:
            return None  # a prompt that fits nowhere, which the run will say of its own

    def tell(self, predicted: Prediction, job: Job) -> None:
        """Say beforehand how fast it will be."""
        tokens = predicted.tokens_out / max(1, min(job.prompts, _MOST_LENGTHS)) * job.prompts
        seconds = tokens / predicted.total_tok_s
        text = (
            f"planned: {predicted.total_tok_s:.3g} tok/s, done in about {format_seconds(seconds)}"
            " if no answer ends early (penstock plan shows why)"
        )
        self.event({"kind": "note", "text": text})

    def _known(self, machine: Machine | None) -> Machine | None:
        """A machine of which the tier that computes is known; None of another one."""
        return machine if machine is not None and self.compute in machine.processors else None

    def _stored(self) -> Machine | None:
        """This host as it was measured; None where it was not."""
        return stored_machine(self.model, self.offload)

    def _measured(self, ledger: Ledger) -> Machine | None:
        """This host as it was measured, or is measured now within what a ledger leaves; None where that is too little.

        That is said, and is no reason not to run.
        """
        try:
            return host_machine(self.model, self.offload, self.event, ledger)
        except UserError as refusal:
            self.event({"kind": "note", "text": f"not planned: {refusal}"})
            return None

    def _case(self, machine: Machine, job: Job, ledger: Ledger) -> Case:
        plan, shape = self.model, model_shape(self.model)
        return Case(
            shape=shape,
            # of the processors only those that this run computes with
            machine=replace(
                machine, processors={t: p for t, p in machine.processors.items() if t in ("cpu", self.compute)}
            ),
            ledger=ledger,
            lengths=_lengths(job),
            asked=with_turning_point(self.asked, shape, machine),
            groups=plan.specs,
            chunking=not plan.anatomy.recurrent,
        )

    def _holds_all(self, placement: Placement, job: Job) -> bool:
        """Whether no page streams and all rows have their KV at hand: there is nothing to choose then."""
        pages = zip(self.model.layout.pages, placement.homes, strict=True)
        streams = any(home != self.compute and page.kind != "embedding" for page, home in pages)
        footprint = self.model.footprint()
        row = (-(-job.mean_tokens // footprint.block_tokens) + 1) * footprint.kv_block
        return not streams and placement.kv.get(self.compute, 0) >= job.prompts * row

    def _as_saved(self, saved: SavedPlan, ledger: Ledger) -> Placement:
        pages = [page.nbytes for page in self.model.layout.pages]
        source = self.model.source
        check(saved, Identity(source.name, fingerprint(source), len(pages), sum(pages)))
        placed = saved.placement
        if (cannot := self._cannot(placed)) is not None:
            raise UserError(f"--plan {cannot}: plan again on this host")
        for tier in TIERS:
            # the checkpoint's own bytes on disk take nothing from the budget there
            resident = sum(n for n, home in zip(pages, placed.homes, strict=True) if home == tier != "disk")
            needed = resident + placed.kv.get(tier, 0) + placed.reserved.get(tier, 0)
            if needed > max(0, ledger.free(tier)):
                beside = f" beside {format_bytes(taken)} that are taken" if (taken := ledger.taken.get(tier, 0)) else ""
                raise UserError(
                    f"--{tier}-memory {format_bytes(ledger.budget.get(tier, 0))} is too small for --plan, which puts"
                    f" {format_bytes(needed)} there{beside}: give {least_mib(ledger, tier, needed)}MiB, or plan again"
                )
        return placed

    def _cannot(self, placed: Placement) -> str | None:
        """Why this host's engine cannot do what a plan says, which may have been edited or made elsewhere; or None."""
        policy = placed.policy
        if policy.cpu_layers and (cannot := self._cannot_split(placed)) is not None:
            return cannot
        beside = self.compute == "gpu" and policy.attention == "cpu"
        if beside and self.model.footprint().transforms:
            return "has attention on cpu, and this model transforms keys where it computes"
        in_place = {self.compute, "cpu"} if beside else {self.compute}
        if not placed.staging and any(policy.kv.of(tier) > 0 for tier in TIERS if tier not in in_place):
            return "leaves no room for KV on its way to where it is attended to"
        return None

    def _cannot_split(self, placed: Placement) -> str | None:
        """Why layers cannot be computed on the cpu as a plan says; None where they can."""
        policy, footprint = placed.policy, self.model.footprint()
        if (footprint.joined or footprint.transforms) or policy.cpu_layers > footprint.decoders:
            return f"computes layers on cpu ({policy.cpu_layers}), and this model's cannot be"
        if any(placed.homes[i] != "cpu" for i in footprint.first_pages(policy.cpu_layers)):
            return f"computes layers on cpu ({policy.cpu_layers}), and not all of their pages rest there"
        if policy.kv.gpu > 0 or policy.attention != "cpu" or policy.activations.gpu < 1:
            return "computes layers on cpu, and has KV, attention or activations elsewhere than that takes"
        return None


def bits_of_plan(saved: SavedPlan, asked: Bits) -> Bits:
    """How a plan packs weights and KV; UserError where flags say otherwise."""
    policy = saved.placement.policy
    planned = Bits(policy.weight_bits, policy.lm_head_bits, policy.kv_bits)
    packing, packed = packing_of(asked), packing_of(planned)
    if packing is not None and packing != (packed or Packing()):
        said = planned.said(name for name, bits in planned.fixed.items() if bits in (4, 8)) or "nothing"
        raise UserError(
            f"--plan packs {said}: leave --weight-bits, --lm-head-bits and --kv-bits out, or plan again with them"
        )
    return planned


def _lengths(job: Job) -> list[Length]:
    """A row for each of the job's prompts, like those that are known of it: they begin alike as these do, no more."""
    known = job.lengths or (Length(job.longest_prompt, max(1, job.mean_tokens - job.longest_prompt)),)
    number = min(job.prompts, _MOST_LENGTHS)
    begun = Beginnings([length.ids for length in known if length.ids is not None]) if number > len(known) else None
    lengths = list(known[:number])
    for at, length in zip(range(len(known), number), cycle(known), strict=False):
        ids = begun.supposed(at, length.prompt) if begun is not None and length.ids is not None else None
        lengths.append(replace(length, ids=ids))
    return lengths
