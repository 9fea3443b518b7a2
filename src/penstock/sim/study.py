"""A study: a scenario with its sweeps, as the cells and pairs that are to be run."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from penstock.errors import UserError
from penstock.sim.given import Given
from penstock.sim.initial import initial_state
from penstock.sim.overrides import combinations, with_settings
from penstock.sim.pairing import Pairing, pairings
from penstock.sim.scenario import Scenario
from penstock.sim.scenario_file import Document, parse
from penstock.sim.scenario_quantities import read_levels
from penstock.sim.trace_source import TraceSource, source_of
from penstock.trace.skip_trace import TraceShape

Swept = Mapping[str, str | float | int | bool | None]

_RESULT_VERSION = 1  # one more where the same inputs come to give other results


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
    levels = _levels(choice, sweeps.pop("skip", None), document, source)
    options = {key: values for key, values in sweeps.items() if key.startswith("options.") or key == "budget"}
    settings = {key: values for key, values in sweeps.items() if key not in options}
    if "budget" in options:
        options["options.budget"] = options.pop("budget")
    cells: list[Cell] = []
    warnings: dict[str, None] = {}
    for setting in combinations(settings):
        given = parse(with_settings(document, setting), source)
        warnings |= dict.fromkeys(_checked(given, source))
        pairs = pairings(given, choice.placements, choice.migrations, options, source)
        swept = {key: _plain(value) for key, value in setting.items()}
        for trace in _traces(given, levels, source):
            cells.append(Cell(given.scenario, trace, pairs, swept, given.batch, choice.lb2))
    base = {key: value for key, value in document.items() if key not in ("skip_levels", "placement", "migration")}
    return Study(cells[0].scenario.name, _digest(base), tuple(cells), tuple(warnings))


def study_of_scenario(scenario: Scenario, choice: Choice = Choice()) -> Study:
    """The study of a scenario made in Python, on synthetic traces; UserError as above."""
    given = Given(scenario, levels=read_levels(list(choice.levels or [0])))
    name = scenario.name
    warnings = tuple(_checked(given, name))
    pairs = pairings(given, choice.placements, choice.migrations, {}, name)
    cells = tuple(Cell(scenario, trace, pairs, {}, 1, choice.lb2) for trace in _traces(given, None, name))
    return Study(name, _digest(asdict(scenario)), cells, warnings)


def _levels(
    choice: Choice, swept: Sequence[object] | None, document: Mapping[str, Any], source: str
) -> tuple[float, ...] | None:
    """The levels that were asked for besides those of the scenario."""
    if swept is not None and choice.levels is not None:
        raise UserError("--skip and --sweep skip=… say the same thing: use one of them")
    asked = swept if swept is not None else choice.levels
    if asked is None:
        return None
    given = parse(with_settings(document, {"skip_levels": list(asked)}), source)
    if given.trace.file is not None:
        raise UserError(f"{source}: the trace {given.trace.file} has its own skip level: leave --skip out")
    return given.levels


def _traces(given: Given, levels: Sequence[float] | None, source: str) -> list[TraceSource]:
    scenario = given.scenario
    shape = TraceShape(scenario.prefill_tokens, scenario.decode_tokens, scenario.layers)
    recorded = given.skip is not None or given.trace.file is not None
    try:
        return [
            source_of(shape, given.trace, level, given.skip)
            for level in ([None] if recorded else levels or given.levels)
        ]
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _checked(given: Given, source: str) -> Iterable[str]:
    """The warnings of a scenario that can begin; UserError for one that cannot."""
    try:
        warning = initial_state(given.scenario).warning
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return [warning] if warning else []


def _sources(texts: Iterable[str]) -> list[str]:
    """The text of each user's policy file: a changed policy is another one."""
    files = [Path(text.partition(".py")[0] + ".py") for text in texts if ".py:" in text]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]


def _digest(told: object) -> str:
    text = json.dumps(told, sort_keys=True, default=_told)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _told(value: object) -> object:
    return f"{value.numerator}/{value.denominator}" if isinstance(value, Fraction) else str(value)


def _plain(value: object) -> str | float | int | bool | None:
    return value if isinstance(value, str | float | int | bool) or value is None else str(value)
