"""Which lengths change a model's rotary frequencies, as its config says it."""

from types import SimpleNamespace
from typing import Any

import pytest

from penstock.engine.rotary import longrope_switch, regime, stretch

LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 100}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.5}


def config(**said: Any) -> Any:
    return SimpleNamespace(**{"max_position_embeddings": 400, **said})


@pytest.mark.parametrize(
    ("given", "switch"),
    [
        (config(rope_parameters=LONGROPE), 100),
        (config(rope_scaling={"type": "longrope"}, original_max_position_embeddings=64), 64),
        (config(rope_parameters={"full": LONGROPE, "sliding": {"rope_type": "default"}}), 100),
        (config(rope_parameters={"rope_type": "longrope"}), None),
        (config(rope_parameters=DYNAMIC), None),
        (config(), None),
    ],
)
def test_the_switch_of_longrope(given: Any, switch: int | None) -> None:
    assert longrope_switch(given) == switch


def test_prompts_on_both_sides_of_the_switch_share_nothing() -> None:
    given = config(rope_parameters=LONGROPE)
    assert [regime(given, tokens, 300) for tokens in (1, 100, 101)] == ["short", "short", "long"]


def test_dynamic_scaling_shares_up_to_the_original_length() -> None:
    given = config(rope_parameters=DYNAMIC)
    assert (regime(given, 10, 400), regime(given, 10, 401)) == ("", None)
    assert regime(config(), 10, 10_000) == "", "the others turn all keys alike"


def test_only_dynamic_scaling_lengthens_the_context() -> None:
    assert stretch(config(rope_parameters=DYNAMIC)) == 2.5
    assert stretch(config(rope_parameters={**LONGROPE, "factor": 4.0})) == 1.0
    assert stretch(config(rope_parameters={"full": DYNAMIC, "sliding": {"rope_type": "default"}})) == 2.5
    assert stretch(config()) == 1.0
