import fcntl
import os
from pathlib import Path

import pytest

from penstock.part_file import PartFile


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")
    with PartFile(path) as file:
        file.file.write(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after" and names(tmp_path) == ["a"]


def test_others_may_write_by_the_name_it_has_until_then(tmp_path: Path) -> None:
    with PartFile(tmp_path / "a") as file:
        file.part.write_bytes(b"theirs")
    assert (tmp_path / "a").read_bytes() == b"theirs"


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), PartFile(path) as file:
        file.file.write(b"after")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before" and names(tmp_path) == ["a"]


def test_a_disk_that_does_not_take_the_end_leaves_nothing(tmp_path: Path) -> None:
    file = PartFile(tmp_path / "a")
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        file.finish()
    assert names(tmp_path) == ["a"]


def test_what_a_killed_process_left_goes_with_the_next_file_of_its_name(tmp_path: Path) -> None:
    left, others, held = (tmp_path / f".{name}.part" for name in ("a*.1", "b.1", "a*.2"))
    for path in (left, others, held):
        path.touch()
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        PartFile(tmp_path / "a*").finish()
    assert names(tmp_path) == [".a*.2.part", ".b.1.part", "a*"]


def test_what_is_being_written_is_not_taken_for_abandoned(tmp_path: Path) -> None:
    first = PartFile(tmp_path / "a")
    first.part.rename(tmp_path / ".a.1.part")
    PartFile(tmp_path / "a").discard()
    assert names(tmp_path) == [".a.1.part"]
    first.discard()


@pytest.mark.parametrize("name", ["", ".", "/", os.devnull])
def test_what_is_no_file_is_not_written_over(name: str) -> None:
    with pytest.raises(OSError, match=r"directory|Invalid"):
        PartFile(Path(name))
