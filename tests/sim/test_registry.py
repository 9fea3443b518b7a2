"""Policies by name: what there is, how options are written, and what is said of those that do not exist."""

from fractions import Fraction

import pytest

from penstock.errors import UserError
from penstock.sim import migrations as migration
from penstock.sim import placements as placement
from penstock.sim.registry import migrations, pair, placements, references


def test_names_and_clairvoyance() -> None:
    looking = {name for name in placements() if pair(name, "none").ahead}
    looking |= {name for name in (*migrations(), *references()) if pair("prefer-hbm", name).ahead}
    assert looking == {
        "look-ahead-batch",
        "look-ahead",
        "look-ahead-layer",
        "look-ahead-batch-layer",
        "alpha",
        "belady",
    }
    assert len(placements()) == 6 and len(migrations()) == 10


def test_options_reach_the_policy() -> None:
    made = pair("look-ahead-batch:window=8,rule=any", "alpha:target=0.9,window=4,budget=slack")
    assert made.placement == placement.LookAheadBatch(8, "any")
    assert made.migration == migration.Alpha(Fraction(9, 10), 4)
    assert made.budget_slack and made.migration_name == "alpha:target=0.9,window=4,budget=slack"
    assert made.ahead == 8 and pair("prefer-hbm", "past-window:window=5").back == 5
    assert pair("split-token:rotated", "look-ahead:room").migration == migration.LookAhead(1, True, True)
    assert pair("prefer-hbm", "none", budget_slack=True).migration_name == "none:budget=slack"
    assert pair("prefer-hbm", "none:budget=all").migration_name == "none"


@pytest.mark.parametrize(
    ("policies", "said"),
    [
        (("best", "none"), "there is no placement 'best': choose prefer-hbm, split-token"),
        (("prefer-hbm", "best"), "there is no migration 'best': choose none, prior"),
        (("prefer-hbm:window=3", "none"), "prefer-hbm has no option 'window': it takes none"),
        (("prefer-hbm", "alpha:goal=1"), "alpha has no option 'goal': it takes target=SHARE, window=N"),
        (("prefer-hbm", "alpha:window=0"), "alpha: window=0: a whole number from 1 is needed"),
        (("prefer-hbm", "alpha:window=x"), "alpha: window=x is not an option: write window=N"),
        (("prefer-hbm", "alpha:target=1.5"), "a share from 0 to 1 is needed"),
        (("prefer-hbm", "alpha:target"), "write target=SHARE"),
        (("look-ahead-batch:rule=most", "none"), r"write rule=half\|any\|all"),
        (("prefer-hbm", "look-ahead:room=4"), "write room"),
        (("prefer-hbm", "none:budget=none"), r"write budget=all\|slack"),
        (("prefer-hbm", "none:budget=all,budget=slack"), "none has the option budget twice"),
        (("prefer-hbm", "alpha:window=2,window=3"), "alpha has the option window twice: leave one out"),
    ],
)
def test_what_does_not_exist_is_named(policies: tuple[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        pair(*policies)
