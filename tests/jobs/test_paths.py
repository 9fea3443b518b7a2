import gzip
import os
from pathlib import Path

import pytest

from penstock.errors import UserError
from penstock.jobs.paths import check_paths


def test_files_that_a_job_can_be_given(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("\n{}\n")
    check_paths(source, tmp_path / "out.jsonl")
    (tmp_path / "out.jsonl").touch()
    check_paths(source, tmp_path / "out.jsonl")


def test_mistakes_are_said_before_anything_is_written(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    out = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match=r"in\.jsonl is not there"):
        check_paths(source, out)
    source.write_text("{}\n")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing" / "out.jsonl")
    (tmp_path / "link").symlink_to(source)
    for wrong, message in [
        (tmp_path, "is a directory"),
        (tmp_path / "missing" / "out.jsonl", "create it first"),
        (source / "out.jsonl", "is not a directory"),
        (source, "would be written over"),
        (tmp_path / "link", "would be written over"),
        (Path("/dev/null"), "is not a file"),
        (Path("-"), "needs a file"),
        (tmp_path / "nowhere", "create it first"),
        (tmp_path / "out.jsonl.gz", r"plain lines; name it out\.jsonl, and compress it"),
    ]:
        with pytest.raises(UserError, match=message):
            check_paths(source, wrong)
    source.rename(tmp_path / "out.jsonl.job")
    with pytest.raises(UserError, match="would be written over"):
        check_paths(tmp_path / "out.jsonl.job", out)


def test_an_input_that_cannot_be_read_is_said_before_anything_else(tmp_path: Path) -> None:
    """The model may take minutes to be read."""
    torn = gzip.compress(b"{}\n" * 100)[:9]
    files = [
        (b"", "holds no request: it is empty"),
        (b"\xef\xbb\xbf\r\n \n", "holds no request"),
        (torn, "is not a whole gzip file"),
        (gzip.compress(b"\n"), "holds no request"),
    ]
    for data, message in files:
        (tmp_path / "in.jsonl").write_bytes(data)
        with pytest.raises(UserError, match=message):
            check_paths(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, message in [(".", "is a directory"), ("pipe", "is a pipe"), ("loop", "Too many levels")]:
        with pytest.raises(UserError, match=message):
            check_paths(tmp_path / name, tmp_path / "out.jsonl")
    with pytest.raises(UserError, match="is not there"):
        check_paths(tmp_path / ("a" * 300), tmp_path / "out.jsonl")


def test_an_output_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.jsonl").write_text("{}\n")
    (tmp_path / "out.jsonl").touch()
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write to all
    with pytest.raises(UserError, match=r"out\.jsonl may not be written to"):
        check_paths(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    monkeypatch.undo()
    check_paths(tmp_path / "in.jsonl", tmp_path / ("a" * 300))  # told by whoever opens it
