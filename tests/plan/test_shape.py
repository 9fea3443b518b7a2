"""What of a model's many pages and layers is alike."""

from dataclasses import replace

from tests.plan.made import MIB, shape

from penstock.plan.shape import AttentionShape, PageShape, distinct


def test_alike_is_counted_once() -> None:
    found, which = distinct(["a", "b", "a", "c", "b"])
    assert (found, which) == (["a", "b", "c"], [0, 1, 0, 2, 1])


def test_kinds_of_a_model_whose_layers_are_all_alike() -> None:
    kinds = shape(8).kinds
    assert len(kinds.pages) == 1 and kinds.page_of == [0] * 16
    assert list(kinds.layers.values()) == [8] and kinds.decoders == 8
    assert len(kinds.joints) == 1 and list(kinds.joint_of) == list(range(0, 16, 2))


def test_windows_and_tables_make_kinds_of_their_own() -> None:
    plain = shape(8)
    windowed = [replace(a, window=128 if i % 2 else None) for i, a in enumerate(plain.attention)]
    table = PageShape(4 * MIB, 0, None, table=True)
    made = replace(plain, attention=windowed, pages=[*plain.pages, table])
    assert sorted(made.kinds.layers.values()) == [4, 4] and len(made.kinds.joints) == 2
    assert made.kinds.tables == [16] and 16 not in made.kinds.order
    assert made.page_bytes == plain.page_bytes


def test_the_first_layers_stand_for_a_model_of_many() -> None:
    kinds = shape(100).kinds
    assert kinds.shown(150) == 200  # a part would save little
    assert kinds.shown(51) == 52  # a whole layer ends there


def test_a_token_meets_only_the_experts_it_is_sent_to() -> None:
    plain = shape(2)
    routed = replace(plain, pages=[replace(page, experts=8) for page in plain.pages], experts=8, experts_chosen=2)
    assert routed.token_flops == plain.token_flops / 4
    assert replace(plain, attention=[AttentionShape(10, 1, None, 0)] * 3).kv_bytes == 30
