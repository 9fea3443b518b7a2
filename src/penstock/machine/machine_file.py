"""Machines as people write them: a TOML file of sizes, bandwidths and rates, each with its source beside it.

The names are those of ``Machine`` and ``Processor``; docs/machines.md has an example.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator
from pydantic_core import ErrorDetails

from penstock.errors import UserError
from penstock.machine import quantities
from penstock.machine.machine import Curve, Link, LinkName, Machine, Processor
from penstock.plan.policy import Tier

_LINKS_OF: Mapping[Tier, tuple[LinkName, LinkName]] = {"gpu": ("cpu→gpu", "gpu→cpu"), "disk": ("disk→cpu", "cpu→disk")}
_ARITHMETIC = re.compile(r"(float16|bfloat16|float32)(<(float16|bfloat16))?")
_LONGEST_SHOWN = 60


def load_machine(path: Path) -> Machine:
    """Read a machine file.

    Raises UserError in one line that names the file, the place in it, what was given and what is allowed.
    """
    document = _document(path)
    sources: dict[str, str] = {}
    try:
        numbers = _without_sources(document, (), sources)
        return _MachineTable.model_validate(numbers).machine(path.stem, sources)
    except ValidationError as error:
        raise UserError(f"{path}: {_said(error.errors()[0], numbers)}") from None
    except _SourceMistake as error:
        raise UserError(f"{path}: {error}") from None


class _SourceMistake(Exception):
    """A source that is not text; its text says where."""


def _arithmetic(given: object) -> str:
    if not isinstance(given, str) or _ARITHMETIC.fullmatch(given) is None:
        raise ValueError("give float16, bfloat16 or float32, or activations<weights such as float32<bfloat16")
    return given


_Size = Annotated[int, PlainValidator(quantities.read_size)]
_Bandwidth = Annotated[float, PlainValidator(quantities.BANDWIDTH.read)]
_Elements = Annotated[float, PlainValidator(quantities.ELEMENTS.read)]
_Seconds = Annotated[float, PlainValidator(quantities.SECONDS.read)]
_Part = Annotated[float, PlainValidator(quantities.read_part)]
_Curve = Annotated[Curve, PlainValidator(quantities.read_curve)]
_Arithmetic = Annotated[str, PlainValidator(_arithmetic)]


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _LinkTable(_Table):
    bytes_per_s: _Bandwidth
    latency_s: _Seconds = 0.0
    staging_bytes_per_s: _Bandwidth = math.inf
    kv_bytes_per_s: _Bandwidth | None = None
    jitter: _Part = 0.0

    @model_validator(mode="before")
    @classmethod
    def _bandwidth_alone(cls, given: object) -> object:
        return given if isinstance(given, dict) else {"bytes_per_s": given}


class _ProcessorTable(_Table):
    products: dict[_Arithmetic, _Curve] = Field(min_length=1)
    attention: _Curve
    kv_bytes_per_s: _Bandwidth
    activation_bytes_per_s: _Bandwidth
    dequantise_per_s: _Elements = math.inf
    visit_s: _Seconds = 0.0
    sweep_s: _Seconds = 0.0
    row_s: _Seconds = 0.0
    logit_s: _Seconds = 0.0
    expert_s: _Seconds = 0.0
    attention_row_s: _Seconds = 0.0
    fresh_bytes_per_s: _Bandwidth = math.inf
    product_s: dict[_Arithmetic, _Seconds] = Field(default_factory=dict)


class _MachineTable(_Table):
    name: str | None = None
    memory: dict[Tier, _Size]
    links: dict[LinkName, _LinkTable] = Field(default_factory=dict)
    processors: dict[Literal["gpu", "cpu"], _ProcessorTable]
    compute_loses: _Part = 0.0
    disk_loses: _Part = 0.0

    @model_validator(mode="after")
    def _fits_together(self) -> "_MachineTable":
        """Every tier has its links and, but for the disk, its processor, and nothing else has."""
        if "cpu" not in self.memory:
            raise ValueError("memory.cpu is missing: every machine has a cpu tier; give its size, such as 64GB")
        for tier, links in _LINKS_OF.items():
            for link in links:
                if (tier in self.memory) != (link in self.links):
                    raise ValueError(_unpaired(f"links.{link}", tier, link in self.links))
        for place in ("gpu", "cpu"):
            if (place in self.memory) != (place in self.processors):
                raise ValueError(_unpaired(f"processors.{place}", place, place in self.processors))
        return self

    def machine(self, name: str, sources: Mapping[str, str]) -> Machine:
        """The value that a planner reads."""
        return Machine(
            name=self.name or name,
            memory=self.memory,
            links={key: Link(**dict(link)) for key, link in self.links.items()},
            processors={tier: Processor(**dict(processor)) for tier, processor in self.processors.items()},
            compute_loses=self.compute_loses,
            disk_loses=self.disk_loses,
            source=sources,
        )


def _unpaired(place: str, tier: str, is_given: bool) -> str:
    if is_given:
        return f"{place} is given, but there is no {tier} tier: give memory.{tier} or leave {place} out"
    return f"{place} is missing: a machine with memory.{tier} needs it"


def _document(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give the path of a machine file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not TOML: {error}: see docs/machines.md for an example") from None


def _without_sources(table: dict[str, Any], place: tuple[str, ...], sources: dict[str, str]) -> dict[str, Any]:
    """The table without what is called ``source`` in it and below, which goes to ``sources`` by its dotted name."""
    numbers: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("->", "→") if place == ("links",) else key
        if key == "source":
            _collect(value, place, sources)
        elif name in numbers:
            raise _SourceMistake(f"{'.'.join((*place, name))} is given twice, also as {key!r}: leave one out")
        else:
            numbers[name] = _without_sources(value, (*place, name), sources) if isinstance(value, dict) else value
    return numbers


def _collect(source: object, place: tuple[str, ...], sources: dict[str, str]) -> None:
    name = ".".join(place) or "machine"
    name = name.replace("->", "→") if name.startswith("links.") else name
    if isinstance(source, str):
        sources[name] = source
    elif isinstance(source, dict):
        for key, value in source.items():
            _collect(value, (*place, key), sources)
    else:
        raise _SourceMistake(f"the source of {_shown(name)} is {_given(source)}: give text, where the number is from")


def _said(mistake: ErrorDetails, document: Mapping[str, Any]) -> str:
    """One line on one mistake: dotted place, what was given, what is allowed."""
    parts = [str(part) for part in mistake["loc"]]
    is_key = parts[-1:] == ["[key]"]
    where = _shown(".".join(parts[:-1] if is_key else parts))
    allowed = _allowed(mistake)
    if not parts:
        return allowed
    if is_key:
        return f"{where} is not known: {allowed}"
    if mistake["type"] == "missing":
        return f"{where} is missing: {allowed}"
    if mistake["type"] == "extra_forbidden":
        return f"{where} is not known: {allowed}"
    return f"{_shown(_written(parts, document))} is {_given(mistake['input'])}: {allowed}"


def _allowed(mistake: ErrorDetails) -> str:
    match mistake["type"]:
        case "value_error":
            return str(mistake["ctx"]["error"])
        case "literal_error":
            return f"give {mistake['ctx']['expected']}"
        case "missing" | "extra_forbidden":
            table = _table_at(mistake["loc"])
            optional = [name for name, field in table.model_fields.items() if not field.is_required()]
            needed = [name for name in table.model_fields if name not in optional]
            return f"give {', '.join(needed)} and, if you like, {', '.join(optional)}"
        case "too_short":
            return "give at least one, such as bfloat16"
        case "dict_type" | "model_type":
            return "give a table"
        case _:
            return mistake["msg"]


def _table_at(place: tuple[int | str, ...]) -> type[_Table]:
    """Whose fields are meant by a place in the file."""
    if len(place) < 3:
        return _MachineTable
    return _LinkTable if place[0] == "links" else _ProcessorTable


def _written(parts: list[str], document: Mapping[str, Any]) -> str:
    """The place as far as the file has it: a link may be one number, which stands for a table of it."""
    written: list[str] = []
    inner: Any = document
    for part in parts:
        if not isinstance(inner, dict) or part not in inner:
            break
        written.append(part)
        inner = inner[part]
    return ".".join(written)


def _shown(place: str) -> str:
    return place if place.isprintable() else repr(place)


def _given(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
