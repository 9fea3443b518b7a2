"""What a scenario file says, as values."""

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.sim.scenario import Scenario

SkipSets = tuple[tuple[tuple[int, ...], ...], ...]  # [step][layer]: ids of skipped tokens


@dataclass(frozen=True)
class TraceRule:
    """Where skip sets come from: a synthetic chain with these parameters, or a file; levels are apart.

    sinks, recent: None is what the chain takes by itself, 4 and 16, and none where all is skipped.
    """

    overlap: float = 0.9
    sinks: int | None = None
    recent: int | None = None
    correlation: float = 0.5
    seed: int = 0
    file: str | None = None


@dataclass(frozen=True)
class Given:
    """All that a scenario file says.

    levels: skip levels of synthetic traces; skip: the sets themselves where the file carries them; placement and
    migration: where the file is a run of its own; options: of policies, by name; batch: rows that share a token step.
    """

    scenario: Scenario
    levels: tuple[float, ...] = (0.0,)
    trace: TraceRule = TraceRule()
    skip: SkipSets | None = None
    placement: str | None = None
    migration: str | None = None
    options: Mapping[str, object] | None = None
    slack: bool = False
    batch: int = 1
