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
    pool.share(block)
    pool.release(block)
    assert pool.used("cpu") == 10
    pool.release(block)
    assert pool.used("cpu") == 0


def test_references_beyond_the_first_are_counted_where_their_block_lies() -> None:
    pool = BlockPool([GroupSpec(10), GroupSpec(3, window=8)], {"cpu": 100, "disk": 100})
    block, window = pool.take(0, "cpu"), pool.take(1, "cpu")
    for shared in (block, block, window):
        pool.share(shared)
    assert pool.doubled("cpu") == 20
    pool.move(block, "disk")
    assert (pool.doubled("cpu"), pool.doubled("disk")) == (0, 20)
    for left in (10, 0, 0):
        pool.release(block)
        assert pool.doubled("disk") == left
    assert pool.used("disk") == 0


def test_lingering_blocks_count_as_free_and_are_evicted_in_the_order_of_release() -> None:
    forgotten: list[int] = []
    pool = BlockPool([GroupSpec(10)], {"cpu": 30}, lambda block: forgotten.append(block.id))
    blocks = [pool.take(0, "cpu") for _ in range(3)]
    for block in blocks:
        block.digest = b"%d" % block.id
    for at in (2, 0, 1):
        pool.release(blocks[at], linger=True)
    assert pool.used("cpu") == pool.free("cpu") == 30
    pool.share(blocks[2])
    assert pool.free("cpu") == 20 and pool.doubled("cpu") == 0
    assert pool.take(0, "cpu").id == 0 and forgotten == [0]
    pool.evict(blocks[1])
    assert forgotten == [0, 1] and pool.used("cpu") == 20 and pool.take(0, "cpu").id == 1


def test_a_move_keeps_the_block_and_changes_its_place() -> None:
    pool = BlockPool([GroupSpec(10)], {"cpu": 20, "disk": 10})
    keep, block = pool.take(0, "cpu"), pool.take(0, "cpu")
    assert pool.move(block, "disk") == Move(0, ("cpu", 1), ("disk", 0))
    assert (block.tier, block.id, pool.used("cpu"), pool.used("disk")) == ("disk", 0, 10, 10)
    with pytest.raises(MemoryError, match="disk has 0 bytes left"):
        pool.move(keep, "disk")
    assert (keep.tier, keep.id) == ("cpu", 0)
