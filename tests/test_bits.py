"""Bits that a person fixed, those that are left to the planner, and what cannot be."""

import pytest

from penstock.bits import Bits, asked_bits, check_planned
from penstock.errors import UserError
from penstock.model.packing import packing_of
from penstock.model.precision import Precision
from penstock.plan.policy import Shares
from penstock.plan.types import Asked

CPU = Shares(cpu=1.0)


def test_the_planner_may_choose_eight_bits_and_four_where_that_is_allowed() -> None:
    assert asked_bits("auto", 8, 4) == Bits(None, 8, 4, {"weight_bits": (8,)})
    assert asked_bits("auto", None, "auto", allow_4bit=True).free == {"weight_bits": (8, 4), "kv_bits": (8, 4)}
    assert asked_bits(16, None, None) == Bits(16)


def test_choices_begin_with_nothing_packed_and_end_with_the_fewest_bits() -> None:
    choices = list(asked_bits("auto", 8, "auto").choices())
    assert choices == [Bits(None, 8, None), Bits(None, 8, 8), Bits(8, 8, None), Bits(8, 8, 8)]
    assert list(Bits(4).choices()) == [Bits(4)]


def test_bits_in_words() -> None:
    assert Bits(8, 4).said(["weight_bits", "kv_bits"]) == "weights in 8 bits and KV as before"
    assert Bits(8, 4).said(["kv_bits"]) == "KV as before"


@pytest.mark.parametrize("name", ["int8g64", "int4g64+head-int8g64+kv-int8g64", "kv-int4g64", "own"])
def test_what_a_job_recorded_settles_what_is_left(name: str) -> None:
    recorded = Precision.packing_in(f"bfloat16/float32/bfloat16+{name}")
    settled = asked_bits("auto", recorded.bits["lm_head_bits"], "auto", allow_4bit=True).settled(recorded.bits)
    assert not settled.free
    packing = packing_of(settled)
    assert packing is None if name == "own" else packing is not None and packing.name.removesuffix("+own") == name


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"weight_bits": 5}, "--weight-bits 5: give 4, 8, 16 or auto"),
        ({"weight_bits": "6"}, "--weight-bits 6: give 4, 8, 16 or auto"),
        ({"kv_bits": True}, "--kv-bits True: give 4, 8, 16 or auto"),
        ({"lm_head_bits": "auto"}, "--lm-head-bits auto: give 4, 8 or 16"),
        ({"weight_bits": 8, "allow_4bit": True}, "--allow-4bit has a say with --weight-bits auto or --kv-bits auto"),
    ],
)
def test_what_are_no_bits_is_refused(asked: dict[str, object], said: str) -> None:
    keywords: dict[str, object] = {"weight_bits": None, "lm_head_bits": None, "kv_bits": None, **asked}
    with pytest.raises(UserError, match=said):
        asked_bits(**keywords)  # type: ignore[arg-type]  # what a person may write


def test_a_planner_without_a_say_is_refused() -> None:
    free, given = asked_bits("auto", None, "auto"), Asked(weights=CPU, kv=CPU, batch_size=2, num_batches=2)
    check_planned(free, Asked(weights=CPU, kv=CPU), None)
    check_planned(Bits(8), given, "plan.json")
    with pytest.raises(
        UserError, match=r"^--weight-bits auto --kv-bits auto: weights, KV and batch shape are all given"
    ):
        check_planned(free, given, None)
    with pytest.raises(UserError, match=r"--plan plan\.json fixes how weights and KV are packed: leave auto out"):
        check_planned(free, Asked(), "plan.json")
