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
from penstock.sim.policy import MigrationPolicy, PlacementPolicy, looks_ahead
from penstock.sim.user_policy import UserMigration, UserPlacement, load_policy

__all__ = ["PolicyKind", "clairvoyant", "load_policy", "migrations", "pair", "placements"]

Policy = TypeVar("Policy")


@dataclass(frozen=True)
class PolicyKind(Generic[Policy]):
    """A policy that comes with Penstock: its name, what it does in one line, and its options."""

    name: str
    line: str
    make: Callable[..., Policy]
    options: tuple[Option, ...] = ()

    @property
    def clairvoyant(self) -> bool:
        """Whether it looks ahead on a recorded trace."""
        return looks_ahead(self.make()) > 0


def _window(steps: int, direction: str = "ahead") -> Option:
    return Option("window", steps, f"steps to look {direction}")


_ROOM = Option("room", False, "outs only where an in needs their place")
# Read by `pair`, for every migration.
BUDGET = Option("budget", "all", "slack: move only in time that a step has left over", ("all", "slack"))


def placements() -> Mapping[str, PolicyKind[PlacementPolicy]]:
    """All placements, by name."""
    rule = Option("rule", "half", "how many of the window's steps must skip the token", ("half", "any", "all"))
    rotated = Option("rotated", False, "shift the layers by one each token")
    return _by_name(
        PolicyKind("prefer-hbm", "HBM while there is room", placement.PreferHbm),
        PolicyKind("split-token", "the first layers in the best share to HBM", placement.SplitToken, (rotated,)),
        PolicyKind("batch-ratio", "of 16 tokens, the first in the best share to HBM", placement.BatchRatio),
        PolicyKind(
            "look-ahead-batch", "external if the steps ahead skip it", placement.LookAheadBatch, (_window(16), rule)
        ),
        PolicyKind(
            "layer-importance",
            "external at layers that skip more than the mean",
            placement.LayerImportance,
            (_window(64, "back"),),
        ),
        PolicyKind("alpha-layers", "external at layers above the best share in HBM", placement.AlphaLayers),
    )


def migrations() -> Mapping[str, PolicyKind[MigrationPolicy]]:
    """All migrations, by name."""
    layers = Option("layers", "own", "this layer's items, or all of a token", ("own", "all"))
    rule = Option("rule", "any", "how many of the window's steps must skip it", ("any", "all"))
    target = Option("target", None, "the share to aim at instead of the best")
    return _by_name(
        PolicyKind("none", "nothing moves", migration.NoMigration),
        PolicyKind(
            "prior", "above 99 %, the oldest tokens out", migration.Prior, (Option("count", 16, "tokens at a time"),)
        ),
        PolicyKind("skipped-tokens", "above 99 %, what this step skips out", migration.SkippedTokens, (layers,)),
        PolicyKind("past-window", "what recent steps skipped out", migration.PastWindow, (_window(16, "back"), rule)),
        PolicyKind(
            "look-ahead",
            "what the next step skips out, what it reads in; whole tokens",
            partial(migration.LookAhead, window=1, whole_tokens=True),
            (_ROOM,),
        ),
        PolicyKind(
            "look-ahead-batch",
            "what the steps ahead skip out, what they read in; whole tokens",
            partial(migration.LookAhead, window=16, whole_tokens=True),
            (_window(16), _ROOM),
        ),
        PolicyKind(
            "look-ahead-layer",
            "as look-ahead, one layer's items",
            partial(migration.LookAhead, window=1, whole_tokens=False),
            (_ROOM,),
        ),
        PolicyKind(
            "look-ahead-batch-layer",
            "as look-ahead-batch, one layer's items",
            partial(migration.LookAhead, window=16, whole_tokens=False),
            (_window(16), _ROOM),
        ),
        PolicyKind("alpha", "in or out what is missing to the best share ahead", migration.Alpha, (target, _window(1))),
        PolicyKind("lru", "what was read stays, what was used least recently leaves", migration.Lru),
    )


def pair(placing: str | PlacementPolicy, moving: str | MigrationPolicy, *, budget_slack: bool = False) -> Pair:
    """Two policies from their names with options, or as they are.

    Raises UserError for names and options that do not exist, naming those that do.
    """
    if isinstance(moving, str):
        moving, slack = _without_budget(moving)
        budget_slack = budget_slack or slack
    placing_policy, placing_name = _placement(placing)
    moving_policy, moving_name = _migration(moving)
    return Pair(placing_policy, moving_policy, placing_name, _with_budget(moving_name, budget_slack), budget_slack)


def clairvoyant(run: Pair) -> bool:
    """Whether one of the two looks ahead."""
    return run.ahead > 0


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
    return _made("migration", migrations(), given)


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
    budgets = [part for part in parts if part.partition("=")[0] == BUDGET.name]
    if not budgets:
        return text, False
    others = ",".join(part for part in parts if part not in budgets)
    values = read_options(head, (BUDGET,), [(BUDGET.name, budgets[-1].partition("=")[2])])
    return f"{head}:{others}" if others else head, values[BUDGET.name] == "slack"


def _with_budget(name: str, slack: bool) -> str:
    if not slack:
        return name
    plain = ":" not in name.rpartition(".py:")[2]
    return f"{name}{':' if plain else ','}budget=slack"


def _by_name(*kinds: PolicyKind[Policy]) -> Mapping[str, PolicyKind[Policy]]:
    return MappingProxyType({kind.name: kind for kind in kinds})
