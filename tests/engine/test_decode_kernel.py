"""The compiled kernel's own matters: the kept code, threads, and long rows."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from penstock.compiled.softmax import exp2
from penstock.engine import decode_kernel


def run(lengths, *, heads=6, kv_heads=2, dim=32, block_tokens=32, scale=1.0):
    """The kernel's result and the reference's for rows of these lengths, bf16 keys in shuffled blocks."""
    torch.manual_seed(0)
    counts = [-(-length // block_tokens) for length in lengths]
    arena = torch.randn(2, sum(counts), kv_heads, block_tokens, dim).bfloat16()
    ids = torch.randperm(sum(counts)).split(counts)
    table = np.full((len(lengths), max(counts)), -1, np.int32)
    for row, blocks in enumerate(ids):
        table[row, : len(blocks)] = blocks
    q = torch.randn(len(lengths), heads, dim) * scale
    out, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:2], torch.nan)
    rows = np.arange(len(lengths))
    lengths_array, lowest = np.array(lengths, np.int64), np.zeros(len(lengths), np.int64)
    decode_kernel.decode(q, *arena, table, rows, lengths_array, lowest, 1.0, None, out, lse)
    expected, expected_lse = torch.empty(out.shape).double(), torch.empty(lse.shape).double()
    for row, length in enumerate(lengths):
        k, v = (x[ids[row]].transpose(0, 1).flatten(1, 2)[:, :length].double() for x in arena)
        scores = q[row].double().unflatten(0, (kv_heads, -1)) @ k.mT
        expected[row] = (scores.softmax(-1) @ v).flatten(0, 1)
        expected_lse[row] = scores.logsumexp(-1).flatten()
    return (out.double(), lse.double()), (expected, expected_lse)


@pytest.mark.parametrize("lengths", [[1], [5000], [1, 2000, 3, 700, 64, 65], [40] * 70])
def test_rows_of_any_length_are_shared_among_threads(lengths, monkeypatch):
    monkeypatch.setattr(decode_kernel, "PART_BYTES", 1)
    for found, expected in zip(*run(lengths), strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


def test_scores_of_hundreds_keep_their_order():
    for found, expected in zip(*run([300, 31], scale=50.0), strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)


def test_exp2_is_exact_to_float32_rounding():
    x = np.linspace(-125, 20, 20_001, dtype=np.float32)
    found = np.array([exp2(value) for value in x])
    np.testing.assert_allclose(found, np.exp2(x.astype(np.float64)), rtol=5e-7)


def test_numba_waits_until_a_row_decodes():
    code = "import sys, penstock.engine.attention; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
