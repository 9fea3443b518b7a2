"""A study: a scenario with its sweeps, as the cells and pairs that are to be run."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

from penstock.errors import UserError
from penstock.sim import belady
from penstock.sim.given import Given
from penstock.sim.initial import initial_state
from penstock.sim.overrides import combinations, with_settings
from penstock.sim.pairing import Pairing, is_reference, pairings
from penstock.sim.scenario import Scenario
from penstock.sim.scenario_file import Document, parse
from penstock.sim.scenario_quantities import read_levels
from penstock.sim.trace_source import TraceSource, source_of
from penstock.trace.skip_trace import TraceShape

Swept = Mapping[str, str | float | int | bool | None]

_RESULT_VERSION = 2  # one more where the same inputs come to give other results


@dataclass(frozen=True)
class Cell:
    """Runs that share a scenario and a trace. batch: rows of a token step; lb2: whether that bound is asked for."""

    scenario: Scenario
    trace: TraceSource
    pairs: tuple[Pairing, ...]
    swept: Swept
    batch: int = 1
    lb2: bool = False

    def row_id(self, pair: Pairing) -> str:
        """Of all that a row's result depends on, the same in every process and on every machine."""
        told = [
            _RESULT_VERSION,
            asdict(self.scenario),
            self.trace.identity,
            [*pair.texts, *_sources(pair.texts)],
            self.batch,
            *(["lb2"] if self.lb2 else []),
        ]
        return _digest(told)


@dataclass(frozen=True)
class Study:
    """All cells of a study. identity: of its scenario, sweeps and choices of policies apart."""

    name: str
    identity: str
    cells: tuple[Cell, ...]
    warnings: tuple[str, ...] = ()

    @property
    def runs(self) -> int:
        """Combinations in all."""
        return sum(len(cell.pairs) for cell in self.cells)


@dataclass(frozen=True)
class Choice:
    """What of a scenario is run. None: what the scenario says, or else every policy that comes with Penstock."""

    placements: Sequence[str] | None = None
    migrations: Sequence[str] | None = None
    levels: Sequence[object] | None = None
    lb2: bool = False


def study_of(
    document: Document, source: str, choice: Choice = Choice(), sweeps: Mapping[str, Sequence[object]] | None = None
) -> Study:
    """The study of a document, with what its keys are swept over, by whole key names (levels as `skip`).

    Raises UserError, naming the source, for what cannot be run, before anything is.
    """
    sweeps = dict(sweeps or {})
    if empty := [key for key, values in sweeps.items() if not values]:
        raise UserError(f"{source}: {empty[0]} is swept over no values: give some, or leave it out")
    asked = _asked_levels(choice, sweeps.pop("skip", None))
    options = {key: values for key, values in sweeps.items() if key.startswith("options.") or key == "budget"}
    settings = {key: values for key, values in sweeps.items() if key not in options}
    if "budget" in options:
        options["options.budget"] = options.pop("budget")
    cells: list[Cell] = []
    warnings: dict[str, None] = {}
    for setting in combinations(settings):
        given = parse(with_settings(document, setting | asked), source)
        if asked and given.trace.file is not None:
            raise UserError(f"{source}: the trace {given.trace.file} has its own skip level: leave --skip out")
        warnings |= dict.fromkeys(_checked(given, source))
        pairs = pairings(given, choice.placements, choice.migrations, options, source)
        swept = {key: _plain(value) for key, value in setting.items()}
        cells += _cells(given, pairs, swept, choice, source)
    base = {key: value for key, value in document.items() if key not in ("skip_levels", "placement", "migration")}
    return Study(cells[0].scenario.name, _digest(base), tuple(cells), tuple(warnings))


def study_of_scenario(scenario: Scenario, choice: Choice = Choice()) -> Study:
    """The study of a scenario made in Python, on synthetic traces; UserError as above."""
    name = scenario.name
    try:
        given = Given(scenario, levels=read_levels(choice.levels or [0]))
    except ValueError as error:
        raise UserError(f"{name}: skip is {choice.levels}: {error}") from None
    warnings = tuple(_checked(given, name))
    pairs = pairings(given, choice.placements, choice.migrations, {}, name)
    return Study(name, _digest(asdict(scenario)), tuple(_cells(given, pairs, {}, choice, name)), warnings)


def _asked_levels(choice: Choice, swept: Sequence[object] | None) -> Document:
    """The key of the scenario that says which levels, where they were asked for."""
    if swept is not None and choice.levels is not None:
        raise UserError("--skip and --sweep skip=… say the same thing: use one of them")
    asked = swept if swept is not None else choice.levels
    return {} if asked is None else {"skip_levels": list(asked)}


def _cells(given: Given, pairs: tuple[Pairing, ...], swept: Swept, choice: Choice, source: str) -> Iterator[Cell]:
    """A cell for each of the scenario's traces; UserError for one that cannot be, or is too large for what is asked."""
    scenario = given.scenario
    shape = TraceShape(scenario.prefill_tokens, scenario.decode_tokens, scenario.layers)
    recorded = given.skip is not None or given.trace.file is not None
    try:
        _check_size(shape, pairs, choice)
        for level in [None] if recorded else given.levels:
            trace = source_of(shape, given.trace, level, given.skip)
            yield Cell(scenario, trace, pairs, swept, given.batch, choice.lb2)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _check_size(shape: TraceShape, pairs: Iterable[Pairing], choice: Choice) -> None:
    """Raise UserError where a bound that is for small instances is asked of a large one."""
    if choice.lb2:
        from penstock.sim import optimum  # scipy's optimiser is slow to import

        optimum.check_size(shape)
    if any(is_reference(pair.texts[1]) for pair in pairs):
        belady.check_size(shape)


def _checked(given: Given, source: str) -> Iterable[str]:
    """The warnings of a scenario that can begin; UserError for one that cannot."""
    try:
        warning = initial_state(given.scenario).warning
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return [warning] if warning else []


def _sources(texts: Iterable[str]) -> list[str]:
    """The text of each user's policy file: a changed policy is another one."""
    files = [Path(text.rpartition(".py:")[0] + ".py") for text in texts if ".py:" in text]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]


def _digest(told: object) -> str:
    text = json.dumps(told, sort_keys=True, default=_told)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _told(value: object) -> object:
    return f"{value.numerator}/{value.denominator}" if isinstance(value, Fraction) else str(value)


def _plain(value: object) -> str | float | int | bool | None:
    return value if isinstance(value, str | float | int | bool) or value is None else str(value)
