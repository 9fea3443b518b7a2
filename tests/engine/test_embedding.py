"""Rows of a table come from wherever its pages are, each once, and nothing else can be done with it."""

import pytest
import torch
from torch.nn.functional import embedding

from penstock.engine.embedding import EmbeddingRows, RowTable
from penstock.model.pages import SECTOR, Page, Slice

WEIGHT = torch.randn(10, 4)
CPU = torch.device("cpu")


def table(asked: list[list[int]]) -> RowTable:
    """Rows 0 to 5 rest in memory, the others are read."""
    where = []
    for index, (start, stop) in enumerate([(0, 6), (6, 10)]):
        part = Slice("e", start, stop, (stop - start, 4), "float32", 0, 16 * (stop - start))
        where.append((Page(index, "e", "embedding", None, (part,), SECTOR, None), part))

    def resident(index):
        return {("e", 0): WEIGHT[:6]} if index == 0 else None

    def read(page, part, rows):
        asked.append(rows)
        return WEIGHT[part.start + torch.tensor(rows)]

    return RowTable((10, 4), torch.float32, CPU, EmbeddingRows(where, resident, read, torch.float32, CPU))


def test_each_row_is_read_once():
    asked: list[list[int]] = []
    ids = torch.tensor([[7, 1, 7], [9, 5, 1]])
    assert torch.equal(embedding(ids, table(asked)), WEIGHT[ids])
    assert asked == [[1, 3]]


def test_what_rests_in_memory_is_not_read():
    asked: list[list[int]] = []
    assert torch.equal(embedding(torch.tensor([0, 5]), table(asked)), WEIGHT[[0, 5]])
    assert asked == []


def test_a_table_of_rows_is_nothing_else():
    rows = table([])
    assert (rows.shape, rows.dtype) == ((10, 4), torch.float32)
    with pytest.raises(RuntimeError, match="read by row"):
        rows + 1
