from hypothesis import given
from hypothesis import strategies as st

from penstock.schedule.packing import pack
from penstock.schedule.types import Span

spans = st.lists(st.integers(1, 30), max_size=20).map(
    lambda counts: [Span(row, 5, count, samples=True) for row, count in enumerate(counts)]
)


@given(spans, st.integers(1, 40))
def test_cut_spans_fill_balanced_micro_batches(given_spans: list[Span], batch_tokens: int) -> None:
    batches = pack(given_spans, batch_tokens, cut=True)
    sizes = [sum(span.count for span in batch) for batch in batches]
    assert all(size <= batch_tokens for size in sizes) and len(set(sizes[:-1])) <= 1
    assert len(sizes) == -(-sum(sizes) // batch_tokens)
    for span in given_spans:
        pieces = [piece for batch in batches for piece in batch if piece.row == span.row]
        assert [piece.first for piece in pieces] == [5 + sum(p.count for p in pieces[:i]) for i in range(len(pieces))]
        assert sum(piece.count for piece in pieces) == span.count
        assert [piece.samples for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@given(spans, st.integers(1, 40))
def test_whole_spans_stay_whole(given_spans: list[Span], batch_tokens: int) -> None:
    batches = pack(given_spans, batch_tokens, cut=False)
    assert [span for batch in batches for span in batch] == given_spans
    assert all(len(batch) == 1 or sum(span.count for span in batch) <= batch_tokens for batch in batches)


def test_all_micro_batches_but_the_last_have_a_multiple_of_16_tokens() -> None:
    def sizes(tokens: int, batch_tokens: int) -> list[int]:
        batches = pack([Span(0, 0, tokens, samples=True)], batch_tokens, cut=True)
        return [sum(span.count for span in batch) for batch in batches]

    assert sizes(532, 256) == [192, 192, 148]
    assert sizes(512, 256) == [256, 256]
    assert sizes(33, 32) == [32, 1]
    assert sizes(50, 18) == [18, 18, 14]  # as the limit is
    assert sizes(40, 256) == [40]
