"""Policies by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Generic, TypeVar

from penstock.errors import UserError
from penstock.sim import migrations as migration
from penstock.sim import placements as placement
from penstock.sim.options import Option, Value, read_options, split_name
from penstock.sim.pair import Pair
from penstock.sim.policy import MigrationPolicy, PlacementPolicy
from penstock.sim.user_policy import UserMigration, UserPlacement, load_policy

__all__ = ["BUDGET", "PolicyKind", "load_policy", "migrations", "pair", "placements", "references"]

Policy = TypeVar("Policy")


@dataclass(frozen=True)
class PolicyKind(Generic[Policy]):
    """A policy of docs/policies.md: its name, how it is made, and its options."""

    name: str
    make: Callable[..., Policy]
    options: tuple[Option, ...] = ()


# Read by `pair`, for every migration.
BUDGET = Option("budget", "all", ("all", "slack"))


def placements() -> Mapping[str, PolicyKind[PlacementPolicy]]:
    """All placements, by name."""
    rule = Option("rule", "half", ("half", "any", "all"))
    return _by_name(
        PolicyKind("prefer-hbm", placement.PreferHbm),
        PolicyKind("split-token", placement.SplitToken, (Option("rotated", False),)),
        PolicyKind("batch-ratio", placement.BatchRatio),
        PolicyKind("look-ahead-batch", placement.LookAheadBatch, (Option("window", 16), rule)),
        PolicyKind("layer-importance", placement.LayerImportance, (Option("window", 64),)),
        PolicyKind("alpha-layers", placement.AlphaLayers),
    )


def migrations() -> Mapping[str, PolicyKind[MigrationPolicy]]:
    """All migrations, by name."""
    window, room = Option("window", 16), Option("room", False)
    whole = partial(migration.LookAhead, whole_tokens=True)
    of_layer = partial(migration.LookAhead, whole_tokens=False)
    return _by_name(
        PolicyKind("none", migration.NoMigration),
        PolicyKind("prior", migration.Prior, (Option("count", 16),)),
        PolicyKind("skipped-tokens", migration.SkippedTokens, (Option("layers", "own", ("own", "all")),)),
        PolicyKind("past-window", migration.PastWindow, (window, Option("rule", "any", ("any", "all")))),
        PolicyKind("look-ahead", partial(whole, window=1), (room,)),
        PolicyKind("look-ahead-batch", partial(whole, window=16), (window, room)),
        PolicyKind("look-ahead-layer", partial(of_layer, window=1), (room,)),
        PolicyKind("look-ahead-batch-layer", partial(of_layer, window=16), (window, room)),
        PolicyKind("alpha", migration.Alpha, (Option("target", None), Option("window", 1))),
        PolicyKind("lru", migration.Lru),
    )


def references() -> Mapping[str, PolicyKind[MigrationPolicy]]:
    """What runs as a migration where it is named, and is none that a system could have."""
    return _by_name(PolicyKind("belady", migration.Belady))


def pair(placing: str | PlacementPolicy, moving: str | MigrationPolicy, *, budget_slack: bool = False) -> Pair:
    """Two policies from their names with options, or as they are.

    Raises UserError for names and options that do not exist, naming those that do.
    """
    if isinstance(moving, str):
        moving, slack = _without_budget(moving)
        budget_slack = budget_slack or slack
    placing_policy, placing_name = _placement(placing)
    moving_policy, moving_name = _migration(moving)
    if budget_slack and isinstance(moving_policy, migration.Belady):
        raise UserError(f"{moving_name} weighs no move against time: leave budget=slack out, or run it by itself")
    return Pair(placing_policy, moving_policy, placing_name, _with_budget(moving_name, budget_slack), budget_slack)


def _placement(given: str | PlacementPolicy) -> tuple[PlacementPolicy, str]:
    if not isinstance(given, str):
        return UserPlacement.around(given)
    if _is_file(given):
        return UserPlacement.around(load_policy(given), given)
    return _made("placement", placements(), given)


def _migration(given: str | MigrationPolicy) -> tuple[MigrationPolicy, str]:
    if not isinstance(given, str):
        return UserMigration.around(given)
    if _is_file(given):
        return UserMigration.around(load_policy(given), given)
    return _made("migration", {**migrations(), **references()}, given)


def _made(what: str, kinds: Mapping[str, PolicyKind[Policy]], text: str) -> tuple[Policy, str]:
    name, given = split_name(text)
    if name not in kinds:
        raise UserError(f"there is no {what} {name!r}: choose {', '.join(kinds)}, or name a class as FILE.py:CLASS")
    values: dict[str, Value] = read_options(name, kinds[name].options, given)
    return kinds[name].make(**values), text


def _is_file(text: str) -> bool:
    return ".py:" in text or text.endswith(".py")


def _without_budget(text: str) -> tuple[str, bool]:
    """A migration's text without `budget=...`, and whether that said slack."""
    head, colon, rest = text.rpartition(":") if _is_file(text) else text.partition(":")
    parts = [part.strip() for part in (rest if colon else "").split(",")]
    budgets = [part for part in parts if part.partition("=")[0].strip() == BUDGET.name]
    if not budgets:
        return text, False
    others = ",".join(part for part in parts if part not in budgets)
    values = read_options(head, (BUDGET,), [(BUDGET.name, part.partition("=")[2].strip()) for part in budgets])
    return f"{head}:{others}" if others else head, values[BUDGET.name] == "slack"


def _with_budget(name: str, slack: bool) -> str:
    if not slack:
        return name
    plain = ":" not in name.rpartition(".py:")[2]
    return f"{name}{':' if plain else ','}budget=slack"


def _by_name(*kinds: PolicyKind[Policy]) -> Mapping[str, PolicyKind[Policy]]:
    return MappingProxyType({kind.name: kind for kind in kinds})
