"""The file beside the output: what a job was started with, how far it is, and the lock that keeps it to one process.

``answers.jsonl.job`` has two lines of JSON. The first is written once and says with what settings the job began; it is
empty until they are known. The second is progress, padded with spaces so that it is overwritten in place: a file that
was replaced would lose its lock, and a crash can only tear what is of no use by then.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from penstock.directories import sync_directory
from penstock.errors import UserError
from penstock.jobs.answers import scan
from penstock.jobs.errors import JobStopped, one_line

VERSION = 1
SAVE_EVERY_S = 2.0
_BEGIN = b'{"version": '
_PADDED_BYTES = 1024
_LOCK_TRIES = 10  # 0.3 s: whoever asks for the status holds the lock for a moment

Settings = Mapping[str, Any]


class JobFile:
    """A job's file, locked as long as this process lives or until ``close``.

    stored: the settings of the run that began the job, or None where this one begins it, which it also does as long as
    the output is empty. A start that comes to nothing (nothing stored, no progress saved) leaves the file as it found
    it, damaged or not.
    """

    def __init__(self, out: Path, file: int, overwrite: bool) -> None:
        self.out, self.path = out, job_path(out)
        self._file: int | None = file
        self._found = data = os.pread(file, os.fstat(file).st_size, 0)
        head, progress = _parts(data, out)
        self._overwrite = overwrite
        self._goes_on = False  # whether this start came to something
        self._head = data.partition(b"\n")[0]
        self._progress = {name: said for name, said in progress.items() if name not in ("tok_s", "eta_s")}
        self._saved_at = -SAVE_EVERY_S
        resumes = bool(head) and not overwrite and out.exists() and out.stat().st_size > 0
        self.stored: Settings | None = head["settings"] if resumes else None

    @classmethod
    def open(cls, out: str | os.PathLike[str], settings: Settings | None = None, overwrite: bool = False) -> "JobFile":
        """Lock the job of an output file and read what is stored of it; ``settings`` are stored where nothing is yet.

        Without settings nothing is stored or overwritten before ``store``. UserError where another process has the job
        or its file is damaged, JobStopped where it cannot be written.
        """
        out = Path(out)
        file = _open_locked(out)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, file)
            job = cls(out, file, overwrite)
            undo.pop_all()
            undo.callback(job.close)
            job._write()  # the process, so that whoever is refused now can be told by whom
            if settings is not None and job.stored is None:
                job.store(settings)
            undo.pop_all()
        return job

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def progress(self) -> Mapping[str, Any]:
        """What was told of the job last, by this process or an earlier one."""
        return dict(self._progress)

    def store(self, settings: Settings) -> None:
        """Keep the settings that this run begins the job with; with ``overwrite`` the output is emptied first."""
        if self._overwrite and self.out.exists():
            try:
                os.truncate(self.out, 0)
            except OSError as error:
                raise UserError(f"{self.out} cannot be emptied ({error.strerror}): use another -o") from error
        head = {"version": VERSION, "started": time.time(), "settings": dict(settings)}
        self._head, self._progress = json.dumps(head).encode(), {}
        self._write()
        self._goes_on, self._overwrite, self.stored = True, False, dict(settings)

    def save_progress(self, progress: Mapping[str, Any], *, every_s: float = SAVE_EVERY_S) -> bool:
        """Say how far the job is, at most every so many seconds; False where it was too soon.

        progress: any of input, lines, answered, errors, to_go, tok_s, eta_s; what is left out stays as it was said.
        """
        self._progress = {**self._progress, **progress}
        self._goes_on = self._goes_on or self.stored is not None
        now = time.monotonic()
        if self._file is None or now - self._saved_at < every_s:
            return False
        self._saved_at = now
        line = self._progress_line()
        try:
            os.pwrite(self._file, line, len(self._head) + 1)
        except OSError:
            return False  # a full disk stops the job where answers are written, and is told there
        return True

    def close(self) -> None:
        """Let go of the lock; after a start that came to nothing the file is what it was before."""
        if self._file is None:
            return
        if self._goes_on:
            self.save_progress({}, every_s=0)
        elif _halves(self._found)[0]:
            with contextlib.suppress(OSError):
                os.pwrite(self._file, self._found, 0)
                os.ftruncate(self._file, len(self._found))
        else:  # there was none, or what a start that was killed had left
            with contextlib.suppress(OSError):
                self.path.unlink()
        os.close(self._file)
        self._file = None

    def _write(self) -> None:
        data = self._head + b"\n" + self._progress_line()
        if self._file is None:
            raise ValueError("the job file is closed")
        try:
            os.pwrite(self._file, data, 0)
            os.ftruncate(self._file, len(data))
            os.fsync(self._file)
            sync_directory(self.path.absolute().parent)
        except OSError as error:
            raise JobStopped(
                f"{self.path.name} cannot be written ({error.strerror}): make room in {self.path.absolute().parent},"
                " then start the same command again"
            ) from error

    def _progress_line(self) -> bytes:
        said = json.dumps({**self._progress, "pid": os.getpid(), "updated": time.time()}).encode()
        blocks = -(-(len(said) + 1) // _PADDED_BYTES)
        return said.ljust(blocks * _PADDED_BYTES - 1) + b"\n"


def job_path(out: str | os.PathLike[str]) -> Path:
    """The job's file of an output file."""
    out = Path(os.path.realpath(out))  # one lock for a file, whatever link it is reached by
    return out.with_name(out.name + ".job")


def conflicts(stored: Settings, asked: Settings) -> list[str]:
    """Every contradiction between a job's settings and those asked for now, as ``dtype float32, now bfloat16``.

    asked: what the person said; None is not said.
    """
    missing = object()
    return [
        f"{name} {_told(stored.get(name, 'not set'))}, now {_told(value)}"
        for name, value in asked.items()
        if value is not None and stored.get(name, missing) != value
    ]


def check_same_job(out: str | os.PathLike[str], answers: int, stored: Settings | None, asked: Settings) -> None:
    """Refuse, by UserError, to go on with answers that other settings gave, or of which it is not known what did."""
    name, ways_out = Path(out).name, "Use another -o, or --overwrite."
    lines = f"{answers:,} line{'s' * (answers != 1)}"
    if stored is None:
        if answers:
            beside = job_path(out).name
            raise UserError(f"{name} holds {lines}, and {beside} does not say what made them. {ways_out}")
    elif differing := conflicts(stored, asked):
        raise UserError(f"{name} holds {lines} of another run ({'; '.join(differing)}). {ways_out}")


def status(out: str | os.PathLike[str]) -> dict[str, Any]:
    """How far the job of an output file is, from any process.

    pid: of the process that runs it now, or None. started, updated: seconds since 1970. settings: as stored. input,
    lines, answered, errors, to_go, tok_s, eta_s: as they were told last; no eta_s where nothing runs. UserError: there
    is no such job.
    """
    out = Path(out)
    path = job_path(out)
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(
            f"no job of {out} is known: {path.name} cannot be read ({error.strerror}); give the -o of a run-batch"
        ) from error
    try:
        runs = not _lock(file, shared=True)
        head, progress = _parts(os.pread(file, os.fstat(file).st_size, 0), out)
    finally:
        os.close(file)
    told = dict.fromkeys(("input", "lines", "answered", "errors", "to_go", "tok_s", "eta_s", "updated"))
    found = {**told, **progress, "started": head.get("started"), "settings": head.get("settings", {})}
    found.pop("survey", None)
    found["pid"] = progress.get("pid") if runs else None
    if not runs:
        found["eta_s"] = None
        if out.exists():
            with contextlib.suppress(UserError):  # what is wrong with the output is told when the job goes on
                done = scan(out)  # a process that was killed may have answered more than it had told
                found |= {"answered": done.answered, "errors": done.errors}
                if found["lines"] is not None:
                    found["to_go"] = max(0, found["lines"] - len(done))
    return found


def _open_locked(out: Path) -> int:
    """The job's file, locked. A job that never began removes its file, so the name is looked at again."""
    path, pid = job_path(out), None
    for _ in range(_LOCK_TRIES):
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}): use another -o") from error
        if not _lock(file):
            pid = _said(_halves(os.pread(file, os.fstat(file).st_size, 0))[1]).get("pid")
        elif _still_named(file, path):
            return file
        os.close(file)
        time.sleep(0.03)
    raise UserError(
        f"{out.name} is being written by another penstock{f' (pid {pid})' if pid else ''}: wait for it, stop it, or use"
        " another -o"
    )


def _lock(file: int, *, shared: bool = False) -> bool:
    """Whether the lock is had now; file systems that know no locks are as if nobody else were there."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _still_named(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _parts(data: bytes, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a job's file says of its settings and of its progress; what is torn says nothing."""
    first, second = _halves(data)
    if first.strip(b"\0") and not first.startswith(_BEGIN[: len(first)]):
        raise UserError(f"{job_path(out)} is not a job of penstock: use another -o, or give that file another name")
    head, progress = _said(first), _said(second)
    version = head.get("version", VERSION)
    if version != VERSION or not isinstance(head.get("settings", {}), dict):
        raise UserError(f"{job_path(out).name} is of another version of penstock ({_told(version)}): use another -o")
    return (head if "settings" in head else {}), progress


def _halves(data: bytes) -> tuple[bytes, bytes]:
    first, _, rest = data.partition(b"\n")
    return first, rest.partition(b"\n")[0]


def _said(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _told(value: Any) -> str:
    return one_line(value if isinstance(value, str) else json.dumps(value), 60)
