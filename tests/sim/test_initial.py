"""The start: shares of weights and prefill KV in HBM, and what is refused."""

from dataclasses import replace
from fractions import Fraction

import pytest

from penstock.errors import UserError
from penstock.sim.initial import initial_state
from penstock.sim.memories import Memories
from penstock.sim.scenario import Initial, Scenario, Start, WeightOrder

MEMORIES = Memories(1000, 3000, 1000, 1000, 2000)  # the best share is 3/4
SCENARIO = Scenario(
    "case", MEMORIES, layers=3, attn_bytes=50, mlp_bytes=101, kv_bytes=7, prefill_tokens=8, decode_tokens=2
)


def began(start: Start, omega: Fraction | None = None, phi: Fraction | None = None, **changes: object) -> Scenario:
    return replace(SCENARIO, initial=Initial(start, omega, phi), **changes)  # type: ignore[arg-type]


def test_hbm_is_filled_token_by_token() -> None:
    state = initial_state(replace(SCENARIO, memories=replace(MEMORIES, hbm_capacity_bytes=453 + 7 * 10 + 6)))
    assert state.slots == 10 and state.occupied_bytes == 453
    assert state.items.sum(axis=0).tolist() == [3, 3, 3, 1, 0, 0, 0, 0]
    assert state.items[0, 3] and not state.items[1, 3] and not state.warning


def test_ratio_spreads_weights_and_tokens() -> None:
    state = initial_state(began(Start.RATIO))
    assert state.attn_bytes.tolist() == [37] * 3 and state.mlp_bytes.tolist() == [75] * 3
    assert state.items[0].astype(int).tolist() == [0, 1, 1, 1, 0, 1, 1, 1]


def test_weights_by_layer_fill_whole_layers_first() -> None:
    initial = Initial(omega=Fraction(1, 2), weight_order=WeightOrder.BY_LAYER)
    state = initial_state(replace(SCENARIO, initial=initial))
    assert state.attn_bytes.tolist() == [50, 50, 0] and state.mlp_bytes.tolist() == [101, 25, 0]
    assert state.occupied_bytes == 226


def test_what_finds_no_place_is_said() -> None:
    tight = replace(MEMORIES, hbm_capacity_bytes=300)
    state = initial_state(began(Start.FRACTION, Fraction(1, 2), Fraction(1), memories=tight))
    assert state.slots == (300 - 225) // 7 == state.items.sum()
    assert state.warning.startswith("14 of the 24 prefill items that phi = 1 asks for do not fit HBM")


def test_a_share_that_is_offered_fits() -> None:
    """2/3 is offered as .6666, not as .6667."""
    tight = replace(SCENARIO, memories=replace(MEMORIES, hbm_capacity_bytes=302), prefill_tokens=0)
    with pytest.raises(UserError, match=r"omega to at most 0\.6666, or 0\.6666 to hold"):
        initial_state(tight)
    assert initial_state(replace(tight, initial=Initial(Start.HBM, Fraction(6666, 10000)))).occupied_bytes <= 302


def test_weights_may_occupy_less_than_is_read_of_them() -> None:
    state = initial_state(replace(SCENARIO, weight_capacity_bytes=300))
    assert state.occupied_bytes == 300 and state.attn_bytes.sum() + state.mlp_bytes.sum() == 453


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        (
            replace(SCENARIO, memories=replace(MEMORIES, hbm_capacity_bytes=400)),
            r"do not fit .* omega to at most 0.8830, or 0.5121 to hold the prefill KV too",
        ),
        (
            replace(began(Start.RATIO), memories=replace(MEMORIES, hbm_capacity_bytes=300)),
            r"use the start 'fraction' with a phi, and set omega to at most 0.6622, or 0.2913 to hold",
        ),
        (began(Start.FRACTION), "needs phi"),
        (began(Start.FRACTION, Fraction(3, 2), Fraction(1)), "omega is 1.5: a share from 0 to 1"),
        (began(Start.RATIO, Fraction(1, 2)), "the start 'ratio' sets omega and phi to the best share"),
        (began(Start.HBM, None, Fraction(1, 2)), "takes no phi"),
    ],
)
def test_what_cannot_be_is_refused(scenario: Scenario, said: str) -> None:
    with pytest.raises(UserError, match=said):
        initial_state(scenario)
