"""The files that a job is given, looked at before anything is written."""

import os
from pathlib import Path

from penstock.errors import UserError
from penstock.jobs.job import job_path
from penstock.jobs.lines import read_lines

_COMPRESSED = (".gz", ".zst")


def check_paths(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Raise UserError where there is nothing to read, no place for the output, or one would be written over the other.

    The input is read as far as its first line, so that what it is and how it is compressed is known to be right.
    JobStopped: the disk fails while it is.
    """
    if str(source) == "-":
        raise UserError("-i -: a job reads its input twice, so it takes no standard input; write it to a file first")
    if str(out) == "-":
        raise UserError("-o -: a job goes on from what its output holds, so it needs a file")
    source, out = Path(source), Path(out)
    if not os.path.lexists(source):
        raise UserError(f"-i {source} is not there: give a file of JSON lines")
    _check_out(out)
    for written in (out, job_path(out)):
        if os.path.exists(written) and os.path.exists(source) and os.path.samefile(source, written):
            raise UserError(f"-i {source} would be written over by -o {out}: give the output another name")
    if next(read_lines(source), None) is None:
        raise UserError(f"-i {source} holds no request: it is empty; put one on each line")


def _check_out(out: Path) -> None:
    if os.path.isdir(out):
        raise UserError(f"-o {out} is a directory: give a file in it")
    folder = Path(os.path.realpath(out)).parent
    if not os.path.isdir(folder):
        raise UserError(f"-o {out}: {folder} is not a directory; create it first")
    if os.path.exists(out) and not os.path.isfile(out):
        raise UserError(f"-o {out} is not a file: a job needs one that it can go on with")
    if os.path.exists(out) and not os.access(out, os.W_OK):
        raise UserError(f"-o {out} may not be written to: change its permissions, or use another -o")
    if out.suffix in _COMPRESSED:
        plain = out.with_suffix("").name
        raise UserError(f"-o {out}: answers are written as plain lines; name it {plain}, and compress it at the end")
