"""Appends answers to the output file: whole lines or nothing, on disk within a second."""

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from penstock.errors import UserError
from penstock.jobs.errors import JobStopped
from penstock.jobs.records import encode
from penstock.units import format_bytes

SYNC_EVERY_S = 0.5


class Writer:
    """The output file, open for appending; it ends with a whole line at any time that no write is under way.

    UserError where the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}): use another -o") from error
        self._whole_bytes = os.fstat(self._file).st_size
        self._failure: OSError | None = None
        self._written, self._closing = threading.Event(), threading.Event()
        self._closed = False
        self._syncing = threading.Thread(target=self._sync, name="penstock-fsync", daemon=True)
        self._syncing.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:  # what stopped the job is what the person must hear
            self._finish()

    def write(self, records: Iterable[Mapping[str, Any]]) -> int:
        """Append one line per record, all in one write, and return the bytes.

        JobStopped where they cannot be written: the file ends with the last whole line before them then.
        """
        if self._closed:
            raise ValueError(f"{self.path} is closed")
        self._check_synced()
        data = b"".join(encode(record) for record in records)
        if not data:
            return 0
        try:
            self._append(data)
        except OSError as error:
            self._stop(error, len(data))
        self._written.set()
        return len(data)

    def close(self) -> None:
        """Have everything on disk and close the file; JobStopped where the disk failed."""
        if not self._closed:
            self._finish()
            self._check_synced()

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._file, left) :]
            self._whole_bytes += len(data)
        finally:
            if left:  # failed or interrupted: what a disk does not take back now is cut off by the next start
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._whole_bytes)

    def _finish(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._closing.set()
        self._written.set()
        self._syncing.join()
        os.close(self._file)

    def _sync(self) -> None:
        closing = False
        while not closing:
            self._written.wait()
            self._written.clear()
            closing = self._closing.wait(SYNC_EVERY_S)  # more may be written meanwhile; one call serves all
            try:
                os.fsync(self._file)
                if not os.fstat(self._file).st_nlink:
                    raise FileNotFoundError(errno.ENOENT, "removed")
            except OSError as error:
                self._failure = error

    def _check_synced(self) -> None:
        if self._failure is not None:
            self._stop(self._failure, 0)

    def _stop(self, error: OSError, nbytes: int) -> NoReturn:
        name, folder = self.path.name, self.path.absolute().parent
        again = "then start the same command again: what is done is kept"
        needs = f"{format_bytes(nbytes)} more are needed"
        if error.errno == errno.ENOSPC:
            free = format_bytes(shutil.disk_usage(folder).free)
            message = f"no room left for {name}: {needs}, {free} are free in {folder}. Free some there, {again}"
        elif error.errno == errno.EDQUOT:
            message = f"the disk quota of {folder} is used up: {needs} for {name}. Delete something there, {again}"
        elif error.errno == errno.EFBIG:
            size = format_bytes(self._whole_bytes)
            message = f"{name} is as large as a file may be here, {size}: {needs}. Raise the limit (ulimit -f), {again}"
        elif error.errno == errno.ENOENT:
            message = (
                f"{name} was removed while it was written to, and its answers are gone: the same command begins anew"
            )
        else:
            message = f"{name} cannot be written ({error.strerror}): see to the disk of {folder}, {again}"
        raise JobStopped(message) from error
