"""Files past the page cache: their descriptors are closed once, by whoever is last."""

import gc
import os

import pytest

from penstock.errors import UserError
from penstock.memory.buffers import aligned_buffer
from penstock.memory.files import File, bytes_of
from penstock.model.pages import SECTOR


def test_a_closed_file_does_not_close_what_came_after_it(tmp_path):
    file = File(str(tmp_path / "a"), os.O_RDWR | os.O_CREAT)
    descriptor = file._descriptor
    file.close()
    other = os.open(tmp_path / "b", os.O_RDWR | os.O_CREAT)
    assert other == descriptor, "the system hands out the lowest number that is free"
    file.close()
    os.fstat(other)
    os.close(other)


def test_a_file_that_nobody_has_any_more_is_closed(tmp_path):
    file = File(str(tmp_path / "a"), os.O_RDWR | os.O_CREAT)
    descriptor = file._descriptor
    del file
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_the_end_of_a_file_is_no_error_where_enough_was_read(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * (SECTOR + 5))
    file, memory = File(str(tmp_path / "a"), os.O_RDONLY), bytes_of(aligned_buffer(2 * SECTOR))
    file.read_all(memory, 0, needed=SECTOR + 5)
    assert bytes(memory[: SECTOR + 5]) == b"x" * (SECTOR + 5)
    with pytest.raises(UserError, match="ends at byte 4,101 where 8,192 are needed: it is truncated; fetch it again"):
        file.read_all(memory, 0)
    file.close()
