"""The files that a job is given, looked at before anything is written."""

import os
from pathlib import Path

from penstock.errors import UserError
from penstock.jobs.job import job_path


def check_paths(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Raise UserError where there is no input, no place for the output, or one would be written over the other."""
    if str(source) == "-":
        raise UserError("-i -: a job reads its input twice, so it takes no standard input; write it to a file first")
    source, out = Path(source), Path(out)
    if not source.exists():
        raise UserError(f"-i {source} is not there: give a file of JSON lines")
    if out.is_dir():
        raise UserError(f"-o {out} is a directory: give a file in it")
    if not out.absolute().parent.is_dir():
        raise UserError(f"-o {out}: {out.absolute().parent} is not a directory; create it first")
    if out.exists() and not out.is_file():
        raise UserError(f"-o {out} is not a file: a job needs one that it can go on with")
    for written in (out, job_path(out)):
        if written.exists() and source.samefile(written):
            raise UserError(f"-i {source} would be written over by -o {out}: give the output another name")
