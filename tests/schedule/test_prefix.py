from hypothesis import given
from hypothesis import strategies as st

from penstock.schedule.prefix import PrefixIndex, chain
from penstock.schedule.types import Block, GroupSpec, Request, Row

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=20)


def row_of(prompt: tuple[int, ...], row_id: int = 0, groups: int = 1, regime: str | None = "") -> Row:
    request = Request("", prompt, 1, regime)
    return Row(row_id, request, "cpu", 1, turn=row_id, chain=chain(request, 4), tables=[[] for _ in range(groups)])


def compute(index: PrefixIndex, row: Row, blocks: int) -> list[list[Block | None]]:
    for group, table in enumerate(row.tables):
        table.extend(Block(group, at, "cpu") for at in range(len(table), blocks))
    row.computed = 4 * blocks
    index.register(row)
    return row.tables


@given(tokens, tokens, st.integers(1, 5))
def test_chains_agree_as_far_as_the_blocks_and_all_before_them_do(
    one: list[int], other: list[int], block_tokens: int
) -> None:
    ours, theirs = (chain(Request("", prompt, 1), block_tokens) for prompt in (one, other))
    assert len(ours) == (len(one) - 1) // block_tokens
    for at, (our, their) in enumerate(zip(ours, theirs, strict=False), 1):
        assert (our == their) == (one[: at * block_tokens] == other[: at * block_tokens])


def test_chains_of_other_regimes_and_places_differ() -> None:
    chains = [chain(Request("", (7,) * 9, 1, regime), 4) for regime in ("", "long", "\7")]
    assert len({digest for digests in chains for digest in digests}) == 6
    assert chain(Request("", (7,) * 9, 1, None), 4) == ()


def test_what_is_computed_first_is_found_until_it_is_forgotten() -> None:
    index = PrefixIndex([GroupSpec(1), GroupSpec(1)], 4)
    one, other = row_of(tuple(range(13)), 0, 2), row_of(tuple(range(9)), 1, 2)
    tables = compute(index, one, 2)
    compute(index, row_of(tuple(range(13)), 2, 2), 3)
    found = index.longest(other)
    assert [[block is own for block, own in zip(*pair, strict=True)] for pair in zip(found, tables, strict=True)] == [
        [True, True],
        [True, True],
    ]
    index.forget(tables[1][1])
    assert index.longest(other) == [tables[0][:1], tables[1][:1]]
    index.forget(tables[0][0])
    assert index.longest(other) == [[], []]


def test_a_window_needs_the_blocks_that_it_reaches_back_to() -> None:
    index = PrefixIndex([GroupSpec(1), GroupSpec(1, window=6)], 4)  # reaches into two blocks
    row = row_of(tuple(range(21)), 0, 2)
    endless, window = compute(index, row, 5)
    assert index.longest(row) == [endless, [None] * 3 + window[3:]]
    index.forget(window[3])
    assert index.longest(row) == [endless[:3], [None, *window[1:3]]]
    index.forget(window[2])
    index.forget(window[0])
    assert index.longest(row) == [[], []]


def test_a_window_of_one_key_takes_over_only_what_was_computed() -> None:
    index = PrefixIndex([GroupSpec(1, window=1)], 4)
    row = row_of(tuple(range(13)))
    assert index.longest(row) == [[]]
    compute(index, row, 2)
    assert index.longest(row) == [[None, None]]


def test_rows_await_older_owners_only() -> None:
    index = PrefixIndex([GroupSpec(1)], 4)
    old, middle, new = (row_of((*range(12), 50 + row_id), row_id) for row_id in range(3))
    index.own(middle)
    assert index.awaited(old, 0) is None and index.awaited(new, 0) == new.chain[2]
    new.awaits = new.chain[2]
    compute(index, middle, 2)
    assert index.waits(new)
    index.disown(middle)
    assert not index.waits(new) and index.awaited(new, 2) is None


def test_blocks_without_references_are_given_back_when_nobody_wants_them() -> None:
    index = PrefixIndex([GroupSpec(1)], 4)
    one, other = row_of(tuple(range(13)), 0), row_of(tuple(range(9)), 1)
    index.want(one)
    index.want(other)
    block, kept, last = compute(index, row_of(tuple(range(13)), 2), 3)[0]
    block.references = last.references = 0
    assert all(map(index.wanted, (block, kept, last)))
    assert index.unwant(one) == [last] and index.unwant(other) == [block]
    assert not index.wanted(block)


def test_a_block_behind_a_window_is_kept_for_prompts_that_part_within_its_reach() -> None:
    index = PrefixIndex([GroupSpec(1, window=6)], 4)
    row = row_of(tuple(range(25)))
    index.want(row_of((*range(16), *range(90, 99))))  # parts after four blocks
    assert [index.parting(row, at, 2) for at in range(8)] == [False, False, True, True] + [False] * 4
