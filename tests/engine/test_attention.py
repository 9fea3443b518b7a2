"""Attention over blocks against a naive float64 reference, on arenas whose unwritten memory holds NaN."""

import math
import random
from dataclasses import dataclass

import pytest
import torch

from penstock.engine import attention, dense_attention
from penstock.engine.attention import append, attend, attend_blocks
from penstock.engine.call_tables import CallTables
from penstock.engine.dense_attention import attend_dense, finish, merge


@dataclass
class Call:
    """A random call: q, the arenas, per span all keys and values of its row as they are stored, in float64."""

    spans: list[tuple[int, int]]
    tables: list[list[int]]
    q: torch.Tensor
    k_arena: torch.Tensor
    v_arena: torch.Tensor
    rows: list[tuple[torch.Tensor, torch.Tensor]]
    block_tokens: int

    def built(self, tables: list[list[int]] | None = None) -> CallTables:
        return CallTables.build(self.spans, self.tables if tables is None else tables, self.block_tokens, "cpu")


def make_call(spans, *, heads=6, kv_heads=2, dk=16, dv=16, block_tokens=16, dtype=torch.float32, seed=0) -> Call:
    """Rows' earlier keys are written directly, the new ones through ``append``; k and v share one strided buffer."""
    random.seed(seed)
    torch.manual_seed(seed)
    needed = [-(-(first + count) // block_tokens) for first, count in spans]
    ids = random.sample(range(sum(needed) + 3), sum(needed))
    tables = [[ids.pop() for _ in range(n)] for n in needed]
    k_part, v_part = kv_heads * block_tokens * dk, kv_heads * block_tokens * dv
    buffer = torch.full((sum(needed) + 3, k_part + v_part + 32), math.nan, dtype=dtype)
    k_arena = buffer[:, :k_part].unflatten(1, (kv_heads, block_tokens, dk))
    v_arena = buffer[:, k_part : k_part + v_part].unflatten(1, (kv_heads, block_tokens, dv))
    rows, new_k, new_v = [], [], []
    for (first, count), table in zip(spans, tables, strict=True):
        k, v = (torch.randn(kv_heads, first + count, d).to(dtype) for d in (dk, dv))
        for p in range(first):
            k_arena[table[p // block_tokens], :, p % block_tokens] = k[:, p]
            v_arena[table[p // block_tokens], :, p % block_tokens] = v[:, p]
        rows.append((k.double(), v.double()))
        new_k.append(k[:, first:].float())
        new_v.append(v[:, first:].float())
    q = torch.randn(sum(count for _, count in spans), heads, dk)
    call = Call(spans, tables, q, k_arena, v_arena, rows, block_tokens)
    append(torch.cat(new_k, 1), torch.cat(new_v, 1), k_arena, v_arena, call.built())
    return call


def reference(call: Call, lowest, scaling, softcap=None, sinks=None):
    """One query and one head at a time, in float64."""
    heads = call.q.shape[1]
    out, lse, token = [], [], 0
    for (first, count), (k, v) in zip(call.spans, call.rows, strict=True):
        group = heads // len(k)
        for position in range(first, first + count):
            low = 0 if lowest is None else int(lowest[token])
            for head in range(heads):
                keys, values = (x[head // group, low : position + 1] for x in (k, v))
                scores = keys @ call.q[token, head].double() * scaling
                if softcap is not None:
                    scores = torch.tanh(scores / softcap) * softcap
                if sinks is not None:
                    scores = torch.cat([scores, sinks[head : head + 1].double()])
                    values = torch.cat([values, torch.zeros(1, values.shape[1], dtype=torch.float64)])
                out.append(scores.softmax(0) @ values)
                lse.append(scores.logsumexp(0))
            token += 1
    shape = call.q.shape[:2]
    return torch.stack(out).unflatten(0, shape), torch.stack(lse).unflatten(0, shape)


def positions(spans):
    return torch.cat([torch.arange(first, first + count) for first, count in spans])


def windows(spans, window):
    return (positions(spans) - window + 1).clamp(min=0)


def chunks(spans, chunk):
    return positions(spans) // chunk * chunk


MIXED = [(0, 7), (48, 1), (0, 1), (0, 40), (33, 20), (199, 1), (15, 1), (16, 1), (33, 20), (31, 2)]


def assert_same(found, expected, tolerance=2e-5):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


HEADS = [(torch.bfloat16, 2, 2), (torch.bfloat16, 4, 1), (torch.bfloat16, 16, 2), (torch.bfloat16, 5, 1)]


@pytest.mark.parametrize(
    ("dtype", "heads", "kv_heads"), [*HEADS, (torch.bfloat16, 6, 2), (torch.float16, 6, 2), (torch.float32, 6, 2)]
)
def test_matches_the_reference_for_head_groups_and_kv_dtypes(dtype, heads, kv_heads):
    call = make_call(MIXED, heads=heads, kv_heads=kv_heads, dtype=dtype)
    found = attend(call.q, call.k_arena, call.v_arena, call.built(), None, 0.25)
    assert_same(found, reference(call, None, 0.25))


@pytest.mark.parametrize(("dk", "dv"), [(16, 16), (24, 8), (72, 64), (8, 12), (80, 144), (5, 3)])
@pytest.mark.parametrize("block_tokens", [16, 32, 64])
def test_matches_the_reference_for_head_sizes_and_block_sizes(dk, dv, block_tokens):
    call = make_call(MIXED, dk=dk, dv=dv, block_tokens=block_tokens, dtype=torch.bfloat16)
    found = attend(call.q, call.k_arena, call.v_arena, call.built(), None, dk**-0.5)
    assert_same(found, reference(call, None, dk**-0.5))


@pytest.mark.parametrize("low", [None, windows(MIXED, 20), windows(MIXED, 1), chunks(MIXED, 24)])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("sinks", [None, torch.tensor([0.3, -2.0, 4.0, 0.0, 1.0, -9.0])])
def test_windows_chunks_softcap_and_sinks(low, softcap, sinks):
    call = make_call(MIXED, dtype=torch.bfloat16)
    found = attend(call.q, call.k_arena, call.v_arena, call.built(), low, 0.5, softcap, sinks)
    assert_same(found, reference(call, low, 0.5, softcap, sinks))


def test_blocks_that_a_window_left_behind_are_never_read():
    call = make_call(MIXED)
    low = windows(MIXED, 18)
    token = 0
    for (_, count), table in zip(call.spans, call.tables, strict=True):
        for index in range(int(low[token]) // call.block_tokens):
            call.k_arena[table[index]] = call.v_arena[table[index]] = math.nan
            table[index] = -1
        token += count
    found = attend(call.q, call.k_arena, call.v_arena, call.built(), low, 0.25)
    assert_same(found, reference(call, low, 0.25))


def test_spans_at_equal_positions_may_see_different_ranges():
    spans = [(20, 5), (20, 5)]
    call = make_call(spans)
    low = torch.cat([torch.zeros(5, dtype=torch.int64), torch.full((5,), 19)])
    assert_same(attend(call.q, call.k_arena, call.v_arena, call.built(), low, 0.25), reference(call, low, 0.25))


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("low", [None, windows([(20, 18)] * 3 + [(0, 2), (20, 18), (5, 1)], 7)])
def test_equal_spans_that_adjoin_and_one_that_does_not(low, softcap, monkeypatch):
    monkeypatch.setattr(dense_attention, "BATCH_BYTES", 50_000)  # two of these spans
    spans = [(20, 18)] * 3 + [(0, 2), (20, 18), (5, 1)]
    call = make_call(spans, dtype=torch.bfloat16)
    found = attend(call.q, call.k_arena, call.v_arena, call.built(), low, 0.25, softcap)
    assert_same(found, reference(call, low, 0.25, softcap))
    adjoining = make_call(spans[:3])
    group = adjoining.built().groups[0]
    assert group.start == 0 and group.take(adjoining.q).data_ptr() == adjoining.q.data_ptr()
    assert call.built().groups[0].start is None


def test_queries_and_heads_laid_out_as_a_projection_leaves_them():
    call = make_call(MIXED, heads=4, dtype=torch.bfloat16)
    expected = reference(call, None, 0.25)
    call.q = call.q.transpose(0, 1).contiguous().transpose(0, 1)
    assert_same(attend(call.q, call.k_arena, call.v_arena, call.built(), None, 0.25), expected)


@pytest.mark.parametrize("shared_heads_are_known", [True, False])
def test_an_older_torch_computes_the_same(shared_heads_are_known, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.0" if shared_heads_are_known else "2.8.0")
    fused = []
    kernel = dense_attention._fused
    monkeypatch.setattr(dense_attention, "_fused", lambda *given: fused.append(1) or kernel(*given))
    call = make_call(MIXED)
    found = attend(call.q, call.k_arena, call.v_arena, call.built(), None, 0.25)
    assert bool(fused) is shared_heads_are_known
    assert_same(found, reference(call, None, 0.25))


@pytest.mark.parametrize("seed", range(4))
def test_subsets_of_blocks_merge_to_the_whole(seed):
    call = make_call(MIXED, dtype=torch.float16, seed=seed)
    owner = [[random.randrange(3) for _ in table] for table in call.tables]
    sinks = torch.randn(6)
    parts = []
    for part in range(3):
        tables = [
            [block if mine == part else -1 for block, mine in zip(table, owners, strict=True)]
            for table, owners in zip(call.tables, owner, strict=True)
        ]
        parts.append(attend_blocks(call.q, call.k_arena, call.v_arena, call.built(tables), None, 0.25))
    assert any(bool(torch.isneginf(lse).any()) for _, lse in parts)
    assert_same(finish(*merge(parts), sinks), reference(call, None, 0.25, sinks=sinks))


def test_small_pieces_and_few_scores_at_a_time_change_nothing(monkeypatch):
    call = make_call(MIXED)
    low = windows(MIXED, 37)
    monkeypatch.setattr(attention, "PIECE_BYTES", 10_000)
    monkeypatch.setattr(dense_attention, "SCORE_BYTES", 2_000)
    monkeypatch.setattr(dense_attention, "BATCH_BYTES", 10_000)
    monkeypatch.setattr(dense_attention, "FUSED_QUERIES", 3)
    capped = attend(call.q, call.k_arena, call.v_arena, call.built(), low, 0.25, 2.0)
    assert_same(capped, reference(call, low, 0.25, 2.0))
    assert_same(attend(call.q, call.k_arena, call.v_arena, call.built(), low, 0.25), reference(call, low, 0.25))
    assert_same(attend(call.q, call.k_arena, call.v_arena, call.built(), None, 0.25), reference(call, None, 0.25))


@pytest.mark.parametrize("low", [None, windows(MIXED, 20)])
def test_decode_by_torch_alone(low, monkeypatch):
    monkeypatch.setattr(attention, "PIECE_BYTES", 100_000)
    call = make_call(MIXED, dk=24, dtype=torch.bfloat16)
    tables = call.built()
    expected, expected_lse = reference(call, low, 0.25, 2.0)
    out, lse = torch.empty(expected.shape), torch.empty(expected_lse.shape)
    attention.decode_gathered(call.q, call.k_arena, call.v_arena, tables, low, 0.25, 2.0, out, lse)
    rows = tables.decode_tokens
    assert_same((out[rows], lse[rows]), (expected[rows], expected_lse[rows]))


def test_bfloat16_queries_give_bfloat16():
    call = make_call(MIXED, dtype=torch.bfloat16)
    call.q = call.q.bfloat16()
    out, lse = attend(call.q, call.k_arena, call.v_arena, call.built(), None, 0.25)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert_same((out, lse), reference(call, None, 0.25), 3e-2)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
@pytest.mark.parametrize("window", [None, 20])
def test_dense_keys_that_end_at_the_last_position(heads, kv_heads, window):
    call = make_call(MIXED, heads=heads, kv_heads=kv_heads, dk=24, dv=16)
    low = None if window is None else windows(MIXED, window)
    sinks = torch.randn(heads)
    kept = [first + count if window is None else min(first + count, count + window) for first, count in MIXED]
    keys, values = (
        torch.cat([row[which][:, -length:] for row, length in zip(call.rows, kept, strict=True)], 1).float()
        for which in (0, 1)
    )
    found = attend_dense(call.q, keys, values, MIXED, kept, low, 0.25, 3.0, sinks)
    assert_same(found, reference(call, low, 0.25, 3.0, sinks))


@pytest.mark.parametrize("low", [None, windows([(8, 20)] * 5, 9)])
@pytest.mark.parametrize("together", [1 << 22, 20_000])
def test_dense_spans_of_equal_length_are_computed_together(low, together, monkeypatch):
    monkeypatch.setattr(dense_attention, "BATCH_BYTES", together)
    spans = [(8, 20)] * 5
    call = make_call(spans, heads=4, kv_heads=4, dk=24, dv=16)
    keys, values = (torch.cat([row[which] for row in call.rows], 1).float() for which in (0, 1))
    found = attend_dense(call.q, keys, values, spans, [28] * 5, low, 0.25)
    assert_same(found, reference(call, low, 0.25))


def test_dense_spans_at_equal_positions_may_see_different_ranges():
    spans = [(20, 5), (20, 5)]
    call = make_call(spans, heads=2)
    low = torch.cat([torch.zeros(5, dtype=torch.int64), torch.full((5,), 19)])
    keys, values = (torch.cat([row[which] for row in call.rows], 1).float() for which in (0, 1))
    assert_same(attend_dense(call.q, keys, values, spans, [25, 25], low, 0.25), reference(call, low, 0.25))


def test_tables_name_every_place():
    spans = [(30, 4), (33, 1), (0, 2), (30, 4), (63, 1)]
    blocks = [[7, -1, 9], [3, 4, 5], [8], [1, 2, 6], [-1, -1, -1, 0]]
    tables = CallTables.build(spans, blocks, 16)
    assert tables.write_blocks.tolist() == [-1, -1, 9, 9, 5, 8, 8, 2, 2, 6, 6, 0]
    assert tables.write_offsets.tolist() == [14, 15, 0, 1, 1, 0, 1, 14, 15, 0, 1, 15]
    assert not tables.writable
    assert tables.decode_tokens.tolist() == [4, 11]
    assert tables.decode_lengths.tolist() == [34, 64]
    assert tables.decode_table.tolist() == [[3, 4, 5, -1], [-1, -1, -1, 0]]
    found = [(g.first, g.count, g.tokens.tolist(), g.blocks.tolist(), g.indices, g.start) for g in tables.groups]
    assert found == [
        (30, 4, [[0, 1, 2, 3]], [[7, 9]], (0, 2), 0),
        (0, 2, [[5, 6]], [[8]], (0,), 5),
        (30, 4, [[7, 8, 9, 10]], [[1, 2, 6]], (0, 1, 2), 7),
    ]


def test_blocks_that_a_row_holds_beyond_its_span_are_left_out():
    tables = CallTables.build([(3, 1), (0, 5)], [[4, 5, 6], [7, 8]], 16)
    assert tables.decode_table.tolist() == [[4]]
    assert (tables.groups[0].blocks.tolist(), tables.groups[0].indices) == ([[7]], (0,))


def test_appending_to_an_absent_block_is_refused():
    call = make_call([(20, 1)])
    tables = call.built([[call.tables[0][0], -1]])
    with pytest.raises(ValueError, match="not here"):
        append(torch.zeros(2, 1, 16), torch.zeros(2, 1, 16), call.k_arena, call.v_arena, tables)


def test_an_empty_call():
    tables = CallTables.build([], [], 16, "cpu")
    arena = torch.zeros(1, 2, 16, 8)
    out, lse = attend(torch.zeros(0, 4, 8), arena, arena, tables, None, 1.0)
    assert (out.shape, lse.shape) == ((0, 4, 8), (0, 4))


def test_decode_by_torch_gathers_no_more_than_is_here():
    """Rows of one token whose blocks lie partly elsewhere, one of them wholly."""
    spans = [(70, 1), (33, 1), (5, 1)]
    call = make_call(spans)
    tables = [[-1, call.tables[0][1], -1, -1, call.tables[0][4]], [call.tables[1][0], -1, -1], [-1]]
    built = call.built(tables)
    assert built.decode_present.tolist() == [[1, 4], [0, -1], [-1, -1]] and built.holds
    assert not call.built([[-1] * 5, [-1] * 3, [-1]]).holds
    low = torch.tensor([20, 3, 0])
    wanted = attend_blocks(call.q, call.k_arena, call.v_arena, built, low, 0.25)
    out, lse = torch.empty(3, 6, 16), torch.empty(3, 6)
    attention.decode_gathered(call.q, call.k_arena, call.v_arena, built, low, 0.25, None, out, lse)
    torch.testing.assert_close((out, lse), wanted, rtol=2e-5, atol=2e-5)
    assert bool(torch.isneginf(lse[2]).all()) and not bool(torch.isneginf(lse[:2]).any())
