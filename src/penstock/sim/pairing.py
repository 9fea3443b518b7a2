"""Which policies run together, by the texts that name them, and which options each gets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from penstock.errors import UserError
from penstock.sim.given import Given
from penstock.sim.options import split_name
from penstock.sim.overrides import all_options, combinations
from penstock.sim.policy import looks_ahead
from penstock.sim.registry import BUDGET, migrations, pair, placements, references

Plain = str | float | int | bool
Side = Literal["placement", "migration"]


@dataclass(frozen=True)
class Pairing:
    """A placement and a migration as the registry reads them.

    labels: the same without what was swept. moves_ahead: how many steps the migration looks ahead.
    swept: (key, value) of each swept option that one of the two has.
    """

    texts: tuple[str, str]
    labels: tuple[str, str]
    slack: bool
    moves_ahead: int
    swept: tuple[tuple[str, Plain], ...] = ()


def split_policies(given: Sequence[str]) -> tuple[str, ...]:
    """Policies from texts with one or more each, parted by commas, as their options are too."""
    policies: list[str] = []
    for text in given:
        for number, part in enumerate(part.strip() for part in text.split(",")):
            if number and policies and ":" in policies[-1] and ":" not in part and ("=" in part or part in _flags()):
                policies[-1] += f",{part}"
            elif part:
                policies.append(part)
    return tuple(dict.fromkeys(policies))


def pairings(
    given: Given,
    placing: Sequence[str] | None,
    moving: Sequence[str] | None,
    sweeps: Mapping[str, Sequence[object]],
    source: str,
) -> tuple[Pairing, ...]:
    """Every placement with every migration under every combination of swept options, each once.

    placing, moving: None is what the scenario names, or else all. A reference, in which no placement has a say, stands
    with the first one alone. Keys of options begin with `options.`; one goes to each policy that has it, unless the
    policy's own text gives it, `options.placement.x` and `options.migration.x` to that side alone. Raises UserError for
    policies and options that do not exist.
    """
    placing = placing or ([given.placement] if given.placement else list(placements()))
    moving = moving or ([given.migration] if given.migration else list(migrations()))
    fixed = dict(_flat(given.options or {})) | ({f"options.{BUDGET.name}": "slack"} if given.slack else {})
    unused = {key for key in fixed if not _is_given(key, (*placing, *moving))} | set(sweeps)
    found: dict[tuple[str, ...], Pairing] = {}
    for place in placing:
        for move in moving:
            for swept in combinations(sweeps):
                made, used = _pairing(place, move, fixed, swept, source)
                unused -= used
                found.setdefault(made.texts[1:] if is_reference(move) else made.texts, made)
    if unused:
        key = min(unused).removeprefix("options.")
        raise UserError(f"{source}: no policy of this run has the option {key}: leave it out, or run one that has it")
    return tuple(found.values())


def _pairing(
    place: str, move: str, fixed: Mapping[str, object], swept: Mapping[str, object], source: str
) -> tuple[Pairing, set[str]]:
    """The pair under these options, and the keys of those that it has a use for."""
    heard, heard_swept = ({}, {}) if is_reference(move) else (fixed, swept)
    placing = _of_side("placement", place, heard), _of_side("placement", place, heard_swept), place
    moving = _of_side("migration", move, fixed), _of_side("migration", move, swept), move
    texts, labels, used, values = [], [], set[str](), dict[str, object]()
    for mine, several, text in (placing, moving):
        plain = {option: value for option, (_, value) in mine.items()}
        varying = {option: value for option, (_, value) in several.items()}
        texts.append(_with_options(text, plain | varying))
        labels.append(_with_options(text, {key: value for key, value in plain.items() if key not in varying}))
        used |= {key for key, _ in (*mine.values(), *several.values())}
        values |= {key.removeprefix("options."): value for key, value in several.values()}
    try:
        made = pair(texts[0], texts[1])
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    told = tuple((key, value) for key, value in values.items() if isinstance(value, Plain))
    ahead = looks_ahead(made.migration)
    return Pairing((texts[0], texts[1]), (labels[0], labels[1]), made.budget_slack, ahead, told), used


def is_reference(migration: str) -> bool:
    """Whether what a text names runs as a migration and decides on new items too."""
    return split_name(migration)[0] in references()


def _of_side(side: Side, text: str, options: Mapping[str, object]) -> dict[str, tuple[str, object]]:
    """Those of the options that a policy takes and its text does not give: own name to whole key and value."""
    name, given = split_name(text)
    kinds = placements() if side == "placement" else migrations()
    takes = {option.name for option in kinds[name].options} if name in kinds else set[str]()
    takes |= {BUDGET.name} if side == "migration" else set()
    takes -= {key for key, _ in given}
    mine: dict[str, tuple[str, object]] = {}
    for key, value in options.items():
        *front, option = key.split(".")
        if option in takes and front in (["options"], ["options", side]):
            mine[option] = (key, value)
    return mine


def _is_given(key: str, texts: Sequence[str]) -> bool:
    """Whether some policy's text gives an option that the scenario gives too."""
    return any(key.rpartition(".")[2] == own for text in texts for own, _ in split_name(text)[1])


def _with_options(text: str, options: Mapping[str, object]) -> str:
    if not options:
        return text
    told = ",".join(
        f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in options.items()
    )
    has_options = ":" in text.rpartition(".py:")[2]
    return f"{text}{',' if has_options else ':'}{told}"


def _flat(options: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from ((f"options.{key}.{inner}", worth) for inner, worth in value.items())
        else:
            yield f"options.{key}", value


def _flags() -> frozenset[str]:
    """Options that stand without a value."""
    return frozenset(option.name for option in all_options() if isinstance(option.default, bool))
