import pytest

from penstock.schedule.pool import BlockPool
from penstock.schedule.types import GroupSpec, Move


def test_ids_count_per_group_and_tier_lowest_free_first() -> None:
    pool = BlockPool([GroupSpec(10), GroupSpec(3)], {"cpu": 100, "disk": 100})
    first, second, third = (pool.take(0, "cpu") for _ in range(3))
    assert [first.id, second.id, third.id, pool.take(1, "cpu").id, pool.take(0, "disk").id] == [0, 1, 2, 0, 0]
    pool.release(second)
    pool.release(first)
    assert [pool.take(0, "cpu").id for _ in range(3)] == [0, 1, 3]
    assert pool.used("cpu") == 43 and pool.free("cpu") == 57 and pool.free("gpu") == 0


def test_a_shared_block_lives_until_its_last_reference() -> None:
    pool = BlockPool([GroupSpec(10)], {"cpu": 10})
    block = pool.take(0, "cpu")
    block.references += 1
    pool.release(block)
    assert pool.used("cpu") == 10
    pool.release(block)
    assert pool.used("cpu") == 0


def test_a_move_keeps_the_block_and_changes_its_place() -> None:
    pool = BlockPool([GroupSpec(10)], {"cpu": 20, "disk": 10})
    keep, block = pool.take(0, "cpu"), pool.take(0, "cpu")
    assert pool.move(block, "disk") == Move(0, ("cpu", 1), ("disk", 0))
    assert (block.tier, block.id, pool.used("cpu"), pool.used("disk")) == ("disk", 0, 10, 10)
    with pytest.raises(MemoryError, match="disk has 0 bytes left"):
        pool.move(keep, "disk")
    assert (keep.tier, keep.id) == ("cpu", 0)
