"""Prompts that were never encoded, supposed to begin as others do."""

from itertools import takewhile

import pytest

from penstock.plan.beginnings import Beginnings
from penstock.schedule.prefix import chain
from penstock.schedule.types import Request

HEADER = list(range(40))
KNOWN = [[*HEADER, *(1000 * i + j for j in range(30))] for i in range(3)] + [list(range(5000, 5060))]


def shared(one: object, other: object) -> int:
    """Tokens of whole blocks in which two prompts agree."""
    pairs = zip(*(chain(Request("", ids, 1), 16) for ids in (one, other)), strict=False)  # type: ignore[arg-type]
    return 16 * len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def test_whole_blocks_that_another_prompt_has_too() -> None:
    assert Beginnings(KNOWN).part == pytest.approx(3 * 32 / (3 * 70 + 60))
    assert Beginnings(KNOWN[2:]).part == Beginnings(KNOWN[:1]).part == Beginnings([]).part == 0


def test_others_begin_as_the_known_ones_in_turn_and_then_differ() -> None:
    alike = Beginnings(KNOWN)
    like_first, like_second, like_last = (alike.supposed(number, 100) for number in (4, 5, 7))
    assert shared(like_first, KNOWN[0]) == shared(like_first, like_second) == 32
    assert shared(like_last, KNOWN[3]) == 0
    assert len(like_first) == len(list(like_first)) == 100
    assert like_first[:32] == tuple(HEADER[:32])
    assert len(set(list(like_first)[32:]) & set(list(like_second)[32:])) == 0


def test_a_short_prompt_is_no_longer_than_it_is() -> None:
    assert list(Beginnings(KNOWN).supposed(4, 10))[:9] == HEADER[:9]
    assert len(list(Beginnings(KNOWN).supposed(4, 10))) == 10
    assert len(list(Beginnings(KNOWN).supposed(4, 1))) == 1
