"""What the flags of ``penstock simulate`` name, as a study."""

from collections.abc import Mapping, Sequence

from penstock.errors import UserError
from penstock.sim.overrides import read_settings, read_sweeps, read_value, with_settings
from penstock.sim.pairing import split_policies
from penstock.sim.policy import MigrationPolicy, PlacementPolicy
from penstock.sim.registry import load_policy
from penstock.sim.shipped import document_of
from penstock.sim.study import Choice, Study, study_of


def choice_of(
    placement: Sequence[str], migration: Sequence[str], own: Sequence[str], skip: str | None, lb2: bool
) -> Choice:
    """What of the scenario is run; a person's own policy stands beside those named on its side, or alone."""
    placing, moving, mine = (
        _named(flag, given)
        for flag, given in (("--placement", placement), ("--migration", migration), ("--policy", own))
    )
    for text in mine:
        made = load_policy(text)
        if not isinstance(made, PlacementPolicy | MigrationPolicy):
            raise UserError(f"--policy {text} is no policy: it needs a method in_hbm(self, view) or moves(self, view)")
        placing += [text] if isinstance(made, PlacementPolicy) else []
        moving += [text] if isinstance(made, MigrationPolicy) else []
    levels = None if skip is None else [read_value(level) for level in skip.split(",")]
    return Choice(placing or None, moving or None, levels, lb2)


def _named(flag: str, given: Sequence[str]) -> list[str]:
    named = list(split_policies(given))
    if given and not named:
        raise UserError(f"{flag} names no policy: give one, or leave it out")
    return named


def study_asked(
    scenario: str, set_: Sequence[str], flags: Mapping[str, str | None], choice: Choice, sweep: Sequence[str]
) -> tuple[Study, list[str]]:
    """What is to be run, and the swept keys that are options of policies; flags: keys that have a flag of their own."""
    settings = read_settings("--set", set_)
    for key, value in flags.items():
        if value is not None and key in settings:
            raise UserError(f"--set {key}={settings[key]} and --{key.partition('.')[0]} {value}: use one of them")
    settings |= {key: value for key, value in flags.items() if value is not None}
    document = with_settings(document_of(scenario), settings)
    if "trace.file" in settings:
        document.pop("skip", None)
        document.pop("skip_levels", None)
    sweeps = read_sweeps("--sweep", sweep)
    for key in sweeps.keys() & settings.keys():
        raise UserError(f"{key} is set to {settings[key]} and swept: leave one out")
    own = [key.removeprefix("options.") for key in sweeps if key.startswith("options.") or key == "budget"]
    return study_of(document, scenario, choice, sweeps), own
