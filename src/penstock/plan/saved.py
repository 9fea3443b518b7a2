"""Plans as files, so that a run can execute exactly what was planned: JSON that a person can read.

A file is checked in every field when it is loaded: it may have been damaged, or edited by hand.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import ErrorDetails

from penstock.errors import UserError
from penstock.plan.plan import Plan
from penstock.plan.policy import TIERS, Admission, Policy, Shares, Tier
from penstock.plan.types import Asked, Placement
from penstock.units import format_bytes

FORMAT = 2  # raised where a plan of before would be run with other bytes than it says
_LONGEST_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Identity:
    """Which model a plan is for. pages, page_bytes: how many there are, and their bytes in all."""

    name: str
    fingerprint: str
    pages: int
    page_bytes: int


@dataclass(frozen=True, slots=True)
class Expected:
    """What was predicted, to be told beside what is measured. lanes: busy seconds."""

    seconds: float
    total_tok_s: float
    prefill_tok_s: float
    decode_tok_s: float
    lanes: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """A plan that an engine can execute. budget: bytes per tier that it was made for. job: in words."""

    model: Identity
    machine: str
    job: str
    budget: Mapping[Tier, int]
    placement: Placement
    predicted: Expected

    @property
    def bounds(self) -> Mapping[Tier, int]:
        """The budgets that bind a run: of a disk on which nothing may rest, the page cache is left out."""
        return {tier: nbytes for tier, nbytes in self.budget.items() if nbytes}


def save_plan(plan: Plan, fingerprint: str, page_bytes: int, path: Path) -> None:
    """Write a plan for ``load_plan``. page_bytes: of all pages.

    Raises UserError where no engine can execute the plan, or the file cannot be written.
    """
    if plan.placement is None:
        raise UserError(f"--save {path}: this plan cannot run ({plan.why_not}), so it is not saved")
    if not plan.fits:
        short = ", ".join(f"{format_bytes(use.short)} of {tier}" for tier, use in plan.memory.items() if use.short)
        raise UserError(f"--save {path}: this plan does not fit ({short} missing), so it is not saved")
    record = {
        "penstock_plan": FORMAT,
        "model": asdict(Identity(plan.model, fingerprint, len(plan.placement.homes), page_bytes)),
        "machine": plan.machine,
        "job": plan.job,
        "budget": {tier: use.budget for tier, use in plan.memory.items()},
        # one line of text: thousands of lines otherwise, with one word each
        "placement": asdict(plan.placement) | {"homes": " ".join(plan.placement.homes)},
        "predicted": {
            "seconds": plan.predicted.seconds,
            "total_tok_s": plan.predicted.total_tok_s,
            "prefill_tok_s": plan.predicted.prefill_tok_s,
            "decode_tok_s": plan.predicted.decode_tok_s,
            "lanes": dict(plan.predicted.lanes),
        },
    }
    try:
        path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--save {path} cannot be written: {error.strerror}") from error


def load_plan(path: Path) -> SavedPlan:
    """Read a saved plan. Raises UserError in one line that names the file, the place in it and what is wrong there."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--plan {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no saved plan: it is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no whole plan: {error.msg} (line {error.lineno}); save it again") from error
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path} is no saved plan: it is nested too deep, or a number is too long") from error
    if not isinstance(record, dict) or "penstock_plan" not in record:
        raise UserError(f"{path} is no saved plan: penstock plan MODEL --save FILE writes one")
    if record["penstock_plan"] != FORMAT:
        raise UserError(f"{path} is of form {_shown(record['penstock_plan'])}, and {FORMAT} is read: save it again")
    try:
        return _Record.model_validate(record).plan()
    except ValidationError as error:
        raise UserError(f"{path}: {_said(error.errors(include_url=False)[0])}") from error
    except _Contradiction as error:
        raise UserError(f"{path}: {error}") from error


def saved_plan(path: Path, asked: Asked) -> SavedPlan:
    """A plan from a file; UserError where it is none, or where flags would change it."""
    if asked != Asked():
        raise UserError(
            f"--plan {path} fixes placement and cut: leave the flags for these out, or plan again with them"
        )
    return load_plan(path)


def check(saved: SavedPlan, model: Identity) -> None:
    """Raise UserError where a plan is for another model, by name, or for another division of it into pages."""
    if saved.model.fingerprint != model.fingerprint:
        raise UserError(
            f"--plan is for {saved.model.name} ({saved.model.fingerprint}), and this is {model.name}"
            f" ({model.fingerprint}): plan for this model"
        )
    planned, here = (saved.model.pages, saved.model.page_bytes), (model.pages, model.page_bytes)
    if planned != here:
        told = [f"{pages:,} pages of {nbytes:,} bytes in all" for pages, nbytes in (planned, here)]
        raise UserError(f"--plan has {told[0]} of {model.name}, and it is cut into {told[1]} here: plan again")


class _Contradiction(Exception):
    """Fields that are sound one by one and not together; its text says which."""


def _homes(given: object) -> tuple[Tier, ...]:
    known: dict[str, Tier] = {tier: tier for tier in TIERS}
    if not isinstance(given, str):
        raise ValueError(f"give the tier of every page in one text, each of {', '.join(TIERS)}")
    words = given.split()
    for number, word in enumerate(words, start=1):
        if word not in known:
            raise ValueError(f"page {number} is on {_shown(word)}: the tiers are {', '.join(TIERS)}")
    return tuple(known[word] for word in words)


_Bytes = Annotated[int, Field(ge=0)]
_Count = Annotated[int, Field(ge=1)]
_Part = Annotated[float, Field(ge=0, le=1)]
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Name = Annotated[str, Field(min_length=1)]
_Bits = Annotated[int, Field(ge=2, le=32)]


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Shares(_Table):
    gpu: _Part
    cpu: _Part
    disk: _Part

    def value(self, where: str) -> Shares:
        total = self.gpu + self.cpu + self.disk
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise _Contradiction(f"placement.policy.{where}: the shares sum to {100 * total:g} %, not 100 %")
        return Shares(self.gpu, self.cpu, self.disk)


class _Policy(_Table):
    weights: _Shares
    kv: _Shares
    activations: _Shares
    rows: _Count
    sweep_tokens: _Count
    batch_tokens: _Count
    slots: _Count
    admission: Admission
    batch_size: _Count | None
    num_batches: _Count | None
    attention: Literal["gpu", "cpu"] | None
    weight_bits: _Bits | None
    cpu_layers: _Bytes = 0
    cpu_tokens: _Bytes = 0
    lm_head_bits: _Bits | None = None
    kv_bits: _Bits | None

    def value(self) -> Policy:
        static = self.admission == "static"
        if (self.batch_size is not None) != static or (self.num_batches is not None) != static:
            said = f"batch_size {self.batch_size} and num_batches {self.num_batches}"
            raise _Contradiction(f"placement.policy: admission is {self.admission} beside {said}")
        kept = {name: getattr(self, name) for name in type(self).model_fields}
        shares = {name: kept[name].value(name) for name in ("weights", "kv", "activations")}
        return Policy(**{**kept, **shares})


class _Placement(_Table):
    policy: _Policy
    homes: Annotated[tuple[Tier, ...], PlainValidator(_homes)]
    kv: dict[Tier, _Bytes]
    staging: _Bytes
    reserved: dict[Tier, _Bytes]


class _Identity(_Table):
    name: _Name
    fingerprint: _Name
    pages: _Bytes
    page_bytes: _Bytes


class _Expected(_Table):
    seconds: _Amount
    total_tok_s: _Amount
    prefill_tok_s: _Amount
    decode_tok_s: _Amount
    lanes: dict[str, _Amount]


class _Record(_Table):
    penstock_plan: Literal[2]
    model: _Identity
    machine: str
    job: str
    budget: dict[Tier, _Bytes]
    placement: _Placement
    predicted: _Expected

    def plan(self) -> SavedPlan:
        """The record as values; _Contradiction where its parts do not go together."""
        placed, pages = self.placement, self.model.pages
        if len(placed.homes) != pages:
            raise _Contradiction(f"placement.homes names {len(placed.homes):,} pages, and model.pages is {pages:,}")
        self._check_budget()
        placement = Placement(placed.policy.value(), placed.homes, placed.kv, placed.staging, placed.reserved)
        identity = Identity(**self.model.model_dump())
        expected = Expected(**self.predicted.model_dump())
        return SavedPlan(identity, self.machine, self.job, self.budget, placement, expected)

    def _check_budget(self) -> None:
        """_Contradiction where a tier that the plan puts something on has no budget: what is free would be taken."""
        placed = self.placement
        held = (
            tier for bytes_by_tier in (placed.kv, placed.reserved) for tier, nbytes in bytes_by_tier.items() if nbytes
        )
        used = {"cpu", *placed.homes, *held}
        for tier in (tier for tier in TIERS if tier in used):
            if tier not in self.budget:
                raise _Contradiction(f"budget.{tier} is missing: save the plan again")
            if tier != "disk" and not self.budget[tier]:  # of a disk the checkpoint alone may be needed
                raise _Contradiction(f"budget.{tier} is 0, and the plan is on it: save the plan again")


def _said(error: ErrorDetails) -> str:
    """What is wrong with a field, where and what stands there."""
    where = ".".join(str(part) for part in error["loc"] if part != "[key]")
    if error["type"] == "missing":
        return f"{where} is missing: save the plan again"
    if error["type"] == "extra_forbidden":
        return f"{where} is not known: take it out, or save the plan again"
    reason = error["msg"].removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    if error["loc"] == ("placement", "homes"):
        return f"{where}: {reason}"
    return f"{where} is {_shown(error['input'])}: {reason}"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
