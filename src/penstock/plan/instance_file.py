"""Instances as people write them: a TOML file, of which ``examples/three-layers.toml`` is one."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import ErrorDetails

from penstock.errors import UserError
from penstock.machine import quantities
from penstock.plan.instance import ITEMS, Instance, ItemName, ReadLink
from penstock.plan.linear import SharesOf
from penstock.plan.policy import TIERS, Shares, Tier
from penstock.plan.shares import parse_shares
from penstock.units import format_rate

_TIER_BEYOND: Mapping[ReadLink, Tier] = {"cpu→gpu": "gpu", "disk→cpu": "disk"}
_DISAGREE = 0.01  # sizes that differ by less are the same, rounded
_MOST = 2**63 - 1
_LONGEST_SHOWN = 60


def read_instance(path: Path) -> Instance:
    """Read an instance file.

    Raises UserError in one line that names the file, the place in it, what was given and what is allowed.
    """
    try:
        document = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give the path of an instance file") from None
    except (ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: not TOML: {said}: examples/three-layers.toml shows the form") from None
    links = document.get("links")
    if isinstance(links, dict):
        document["links"] = {key.replace("->", "→"): rate for key, rate in links.items()}
    try:
        return _File.model_validate(document).instance(path)
    except ValidationError as error:
        raise UserError(f"{path}: {_said(error.errors()[0])}") from None
    except _Contradiction as error:
        raise UserError(f"{path}: {error}") from None


class _Contradiction(Exception):
    """Two places that do not go together; its text is the line on them."""


class _SharesMistake(ValueError):
    """Shares that are none; its text goes on where the place ends."""


def _count(given: object) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not 0 < given <= _MOST:
        raise ValueError("give a whole number greater than zero")
    return given


def _text(given: object) -> str:
    if not isinstance(given, str) or not given.strip() or not given.isprintable():
        raise ValueError("give text in one line")
    return given.strip()


def _room(given: object) -> int | None:
    if given == "unlimited":
        return None
    try:
        return _size(given)
    except ValueError as error:
        raise ValueError(f'{error}, or "unlimited"') from None


def _size(given: object) -> int:
    return 0 if given == 0 and isinstance(given, int) and not isinstance(given, bool) else quantities.read_size(given)


def _shares(given: object) -> Shares:
    if not isinstance(given, str | dict):
        raise ValueError('give shares such as "gpu=70%,cpu=20%,disk=10%" or { gpu = 70, cpu = 20, disk = 10 }')
    try:
        return parse_shares(given, what="")
    except UserError as error:
        raise _SharesMistake(str(error)) from None


_Count = Annotated[int, PlainValidator(_count)]
_Text = Annotated[str, PlainValidator(_text)]
_Size = Annotated[int, PlainValidator(_size)]
_Room = Annotated[int | None, PlainValidator(_room)]
_Bandwidth = Annotated[float, PlainValidator(quantities.BANDWIDTH.read)]
_Seconds = Annotated[float, PlainValidator(quantities.SECONDS.read)]
_SharesOf = Annotated[Shares, PlainValidator(_shares)]


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Sizes(_Table):
    weights: _Size | None = None
    kv: _Size | None = None
    activations: _Size | None = None


class _Dimensions(_Table):
    """An OPT-like layer in 16 bits, in decode: FlexGen's formulas."""

    hidden: _Count
    ffn: _Count
    batch: _Count
    prompt: _Count
    generate: _Count

    def sizes(self) -> dict[ItemName, tuple[int, str]]:
        """Bytes of one layer, and the formula that makes them."""
        tokens = 2 * self.prompt + self.generate
        return {
            "weights": (8 * self.hidden**2 + 4 * self.hidden * self.ffn, "8·hidden² + 4·hidden·ffn"),
            "kv": (2 * self.batch * tokens * self.hidden, "4·batch·(prompt + generate/2)·hidden"),
            "activations": (2 * self.batch * self.hidden, "2·batch·hidden"),
        }


class _Answer(_Table):
    name: _Text | None = None
    weights: _SharesOf
    kv: _SharesOf
    activations: _SharesOf


class _File(_Table):
    name: _Text | None = None
    layers: _Count = 1
    disk_through_cpu: bool = True
    compute_s: _Seconds = 0.0
    memory: dict[Tier, _Room]
    links: dict[ReadLink, _Bandwidth] = Field(default_factory=dict)
    sizes: _Sizes = Field(default_factory=_Sizes)
    dimensions: _Dimensions | None = None
    answers: list[_Answer] = Field(default_factory=list)

    def instance(self, path: Path) -> Instance:
        """The value that is solved; _Contradiction where places of the file do not go together."""
        self._check_links()
        answers = {name: self._placement(number, self.answers[number - 1]) for number, name in self._names().items()}
        sizes, notes = self._layer_sizes()
        return Instance(
            source=str(path),
            name=self.name or path.stem,
            layers=self.layers,
            sizes=sizes,
            memory={tier: self.memory[tier] for tier in TIERS if tier in self.memory},
            links={link: self.links[link] for link in _TIER_BEYOND if link in self.links},
            compute_s=self.compute_s,
            disk_through_cpu=self.disk_through_cpu,
            answers=answers,
            notes=notes,
        )

    def _check_links(self) -> None:
        if "cpu" not in self.memory:
            raise _Contradiction('memory.cpu is missing: every instance has a cpu tier; give its size, such as "16GB"')
        for link, tier in _TIER_BEYOND.items():
            if tier in self.memory and link not in self.links:
                raise _Contradiction(f'links.{link} is missing: memory.{tier} needs it; give it, such as "10GB/s"')
            if link in self.links and tier not in self.memory:
                raise _Contradiction(f"links.{link} is given without memory.{tier}: give both or neither")

    def _layer_sizes(self) -> tuple[dict[ItemName, int], tuple[str, ...]]:
        """Bytes of one layer, given ones before those that dimensions make, and where the two disagree."""
        derived = self.dimensions.sizes() if self.dimensions else {}
        sizes: dict[ItemName, int] = {}
        notes: list[str] = []
        for name in ITEMS:
            given: int | None = getattr(self.sizes, name)
            if given is None and name not in derived:
                raise _Contradiction(f'sizes.{name} is missing: give it, such as "16MB", or [dimensions]')
            if given is None:
                sizes[name] = derived[name][0]
                continue
            sizes[name] = given
            if name in derived and abs(derived[name][0] - given) > _DISAGREE * given:
                made, formula = derived[name]
                notes.append(
                    f"sizes.{name} is {_decimal(given)} and counts; dimensions make {_decimal(made)}: {formula}"
                )
        return sizes, tuple(notes)

    def _names(self) -> dict[int, str]:
        """Names of the answers, which must tell them apart, by number."""
        names: dict[int, str] = {}
        for number, answer in enumerate(self.answers, start=1):
            name = answer.name or f"answer {number}"
            if name == "optimum" or name in names.values():
                raise _Contradiction(f"answers.{number}.name is {name!r}, which is taken: give each answer its own")
            names[number] = name
        return names

    def _placement(self, number: int, answer: _Answer) -> SharesOf:
        placed: dict[str, dict[Tier, float]] = {}
        for name in ITEMS:
            shares: Shares = getattr(answer, name)
            for tier in TIERS:
                if shares.of(tier) and tier not in self.memory:
                    raise _Contradiction(
                        f"answers.{number}.{name} puts {100 * shares.of(tier):.3g} % on {tier}:"
                        f" memory has {', '.join(self.memory)}"
                    )
            placed[name] = {tier: shares.of(tier) for tier in TIERS if tier in self.memory}
        return placed


def _decimal(nbytes: int) -> str:
    """A size in decimal units, as such files are written: ``25.2 MB``."""
    return format_rate(nbytes).removesuffix("/s")


def _said(mistake: ErrorDetails) -> str:
    """One line on one mistake: dotted place, answers counted from 1, what was given, what is allowed."""
    parts = [str(part + 1) if isinstance(part, int) else part for part in mistake["loc"]]
    is_key = parts[-1] == "[key]"
    place = ".".join(parts[:-1] if is_key else parts)
    place = place if place.isprintable() else repr(place)
    allowed = _allowed(mistake)
    if is_key or mistake["type"] == "extra_forbidden":
        return f"{place} is not known: {allowed}"
    if mistake["type"] == "missing":
        return f"{place} is missing: {allowed}"
    if isinstance(mistake.get("ctx", {}).get("error"), _SharesMistake):
        return f"{place}{allowed}"
    text = repr(mistake["input"])
    return f"{place} is {text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + '…'}: {allowed}"


def _allowed(mistake: ErrorDetails) -> str:
    match mistake["type"]:
        case "value_error":
            return str(mistake["ctx"]["error"])
        case "literal_error":
            return f"give {mistake['ctx']['expected']}"
        case "missing" | "extra_forbidden":
            tables: dict[Any, type[_Table]] = {"sizes": _Sizes, "dimensions": _Dimensions, "answers": _Answer}
            table = tables[mistake["loc"][0]] if len(mistake["loc"]) > 1 else _File
            return f"give {', '.join(table.model_fields)}"
        case "dict_type" | "model_type":
            return "give a table"
        case "list_type":
            return "give [[answers]] tables"
        case "bool_type":
            return "give true or false"
        case _:
            return mistake["msg"]
