from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from tests.sim.documents import document

from penstock.errors import UserError
from penstock.sim.pairing import Pairing, pairings, split_policies
from penstock.sim.registry import migrations, placements
from penstock.sim.scenario_file import parse


def pairs(
    placing: Sequence[str] | None = None,
    moving: Sequence[str] | None = None,
    sweeps: Mapping[str, Sequence[object]] | None = None,
    **changes: Any,
) -> tuple[Pairing, ...]:
    return pairings(parse(document(**changes), "x"), placing, moving, sweeps or {}, "x")


@pytest.mark.parametrize(
    ("given", "policies"),
    [
        (["none,alpha"], ("none", "alpha")),
        (["alpha:target=.7,window=4,none"], ("alpha:target=.7,window=4", "none")),
        (["look-ahead:room,budget=slack", "look-ahead"], ("look-ahead:room,budget=slack", "look-ahead")),
        (["alpha:window=2,look-ahead-batch:window=8"], ("alpha:window=2", "look-ahead-batch:window=8")),
        (["mine.py:Mine,none"], ("mine.py:Mine", "none")),
        (["none, none,"], ("none",)),
    ],
)
def test_policies_and_their_options_are_told_apart(given: list[str], policies: tuple[str, ...]) -> None:
    assert split_policies(given) == policies


def test_all_policies_unless_some_are_named() -> None:
    assert len(pairs()) == len(placements()) * len(migrations())
    assert [pair.texts for pair in pairs(placement="prefer-hbm", migration="alpha")] == [("prefer-hbm", "alpha")]
    assert [pair.texts for pair in pairs(["alpha-layers"], ["none"], placement="prefer-hbm")] == [
        ("alpha-layers", "none")
    ]


def test_an_option_goes_to_every_policy_that_has_it() -> None:
    found = pairs(["prefer-hbm", "look-ahead-batch"], ["none", "past-window"], options={"window": 4})
    assert [pair.texts for pair in found] == [
        ("prefer-hbm", "none"),
        ("prefer-hbm", "past-window:window=4"),
        ("look-ahead-batch:window=4", "none"),
        ("look-ahead-batch:window=4", "past-window:window=4"),
    ]


def test_an_option_of_one_side_stays_there() -> None:
    (pair,) = pairs(["look-ahead-batch"], ["past-window"], options={"migration": {"window": 4}})
    assert pair.texts == ("look-ahead-batch", "past-window:window=4")


def test_a_text_that_gives_an_option_keeps_it() -> None:
    (pair,) = pairs(["prefer-hbm"], ["alpha:target=0.5"], options={"target": 0.7, "window": 2})
    assert pair.texts[1] == "alpha:target=0.5,window=2"


def test_what_is_swept_is_not_in_the_label() -> None:
    found = pairs(["prefer-hbm"], ["none", "alpha"], {"options.target": (0.7, 0.8)}, options={"window": 2})
    assert [(pair.labels[1], dict(pair.swept)) for pair in found] == [
        ("none", {}),
        ("alpha:window=2", {"target": 0.7}),
        ("alpha:window=2", {"target": 0.8}),
    ]
    assert found[1].texts[1] == "alpha:window=2,target=0.7"


def test_slack_is_an_option_of_every_migration() -> None:
    assert [pair.slack for pair in pairs(["prefer-hbm"], ["none", "alpha"], budget="slack")] == [True, True]
    swept = pairs(["prefer-hbm"], ["alpha"], {"options.budget": ("all", "slack")})
    assert [(pair.slack, pair.labels[1]) for pair in swept] == [(False, "alpha"), (True, "alpha")]


def test_a_reference_stands_once_with_the_first_placement() -> None:
    sweeps = {"options.window": (2, 4)}
    found = pairs(["look-ahead-batch", "prefer-hbm"], ["alpha", "belady"], sweeps)
    (belady,) = [pair for pair in found if pair.texts[1] == "belady"]
    assert (belady.texts[0], belady.swept) == ("look-ahead-batch", ()) and len(found) == 1 + 2 + 2
    with pytest.raises(UserError, match="no placement 'best'"):
        pairs(["prefer-hbm", "best"], ["belady"])
    with pytest.raises(UserError, match="no policy of this run has the option window"):
        pairs(["look-ahead-batch"], ["belady"], sweeps)


@pytest.mark.parametrize(
    ("moving", "options", "told"),
    [
        (["none"], {"target": 0.7}, "no policy of this run has the option target"),
        (["alhpa"], {}, "x: there is no migration 'alhpa'"),
        (["alpha"], {"target": 7}, "x: alpha: target=7"),
    ],
)
def test_mistakes_name_the_source(moving: list[str], options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        pairs(["prefer-hbm"], moving, options=options)
