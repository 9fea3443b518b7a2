from pathlib import Path

import pytest

from penstock.errors import UserError
from penstock.jobs.paths import check_paths


def test_files_that_a_job_can_be_given(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.touch()
    check_paths(source, tmp_path / "out.jsonl")
    (tmp_path / "out.jsonl").touch()
    check_paths(source, tmp_path / "out.jsonl")


def test_mistakes_are_said_before_anything_is_written(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    out = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match=r"in\.jsonl is not there"):
        check_paths(source, out)
    source.touch()
    (tmp_path / "link").symlink_to(source)
    for wrong, message in [
        (tmp_path, "is a directory"),
        (tmp_path / "missing" / "out.jsonl", "create it first"),
        (source / "out.jsonl", "is not a directory"),
        (source, "would be written over"),
        (tmp_path / "link", "would be written over"),
        (Path("/dev/null"), "is not a file"),
    ]:
        with pytest.raises(UserError, match=message):
            check_paths(source, wrong)
    source.rename(tmp_path / "out.jsonl.job")
    with pytest.raises(UserError, match="would be written over"):
        check_paths(tmp_path / "out.jsonl.job", out)
