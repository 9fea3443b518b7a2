import hashlib

from penstock.jobs.index import Index


def digest(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def test_what_is_added_is_found_and_nothing_else() -> None:
    index = Index()
    for number in range(1, 5001):
        assert index.add(digest(number), number)
    assert len(index) == 5000
    assert [index.get(digest(number)) for number in range(1, 5001)] == list(range(1, 5001))
    assert index.get(digest(0)) == index.get(digest(5001)) == 0


def test_the_first_number_of_a_key_stays() -> None:
    index = Index()
    assert index.add(digest(1), 2**64 - 1)
    assert not index.add(digest(1), 5)
    assert (index.get(digest(1)), len(index)) == (2**64 - 1, 1)


def test_keys_that_begin_alike_are_apart() -> None:
    index = Index()
    keys = [b"\xff" * 8 + digest(number)[:8] for number in range(50)]
    for number, key in enumerate(keys, start=1):
        index.add(key, number)
    assert [index.get(key) for key in keys] == list(range(1, 51))


def test_an_entry_takes_72_bytes_at_most() -> None:
    index = Index()
    for number in range(1, 3000):
        index.add(digest(number), number)
        assert number < 700 or index.nbytes <= 72 * number


def test_room_that_is_taken_beforehand_is_enough() -> None:
    index = Index(expected=1000)
    before = index.nbytes
    for number in range(1, 1001):
        assert index.add(digest(number), number)
    assert index.nbytes == before == Index(expected=1000).nbytes
    assert [index.get(digest(number)) for number in (1, 1000, 1001)] == [1, 1000, 0]
    assert Index().nbytes < before
