"""The answers that a file holds already: what is done, what is torn, what is to run again."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from penstock.directories import sync_directory
from penstock.errors import UserError
from penstock.jobs.errors import JobStopped, Tally, one_line
from penstock.jobs.identity import DUPLICATE, ID_HEX, ID_PREFIX, key_of_custom_id, key_of_line
from penstock.jobs.index import Index
from penstock.units import format_bytes

_BEGIN = b'{"id": "' + ID_PREFIX.encode()
# An answer as ``records`` writes it, with a custom_id that JSON did not have to spell: read five times as fast.
_USUAL = re.compile(
    rb'\{"id": "(%s[0-9a-f]{%d})", "custom_id": "([^"\\\0]+)", "line": (\d+)(, "implicit_id": true)?, '
    rb'"response": \{"status_code": 200, [^\0]*\}, "error": null\}\n' % (ID_PREFIX.encode(), ID_HEX)
)
_ID = re.compile(ID_PREFIX + f"[0-9a-f]{{{ID_HEX}}}")
_SHORTENED = (1 << 62) - 1  # the bits of an id that are kept: enough to tell a changed request
_WAYS_OUT = "or use another -o, or --overwrite"


class Answer(NamedTuple):
    """What a line of the output says of its line of the input. code: of an error line, else None."""

    key: bytes
    id: str
    line: int
    code: str | None = None


class Done:
    """What an output file holds, by key; 36 to 72 bytes a line.

    answered: lines with an answer. tally: error lines, by reason. whole_bytes: of the file, up to where it is whole;
    torn_bytes: what follows there. retries: error lines count as absent, since they are to run again.
    """

    def __init__(self) -> None:
        self.answered = 0
        self.tally = Tally()
        self.whole_bytes = self.torn_bytes = 0
        self.retries = False
        self._marks = Index()  # an id's bits, then 1 for an error line, then 1, since 0 is absent

    def __len__(self) -> int:
        return len(self._marks)

    def __contains__(self, key: bytes) -> bool:
        mark = self._marks.get(key)
        return mark != 0 and not (self.retries and mark & 2)

    @property
    def errors(self) -> int:
        """Error lines."""
        return self.tally.total

    def is_error(self, key: bytes) -> bool:
        """Whether the key's line is an error line."""
        return self._marks.get(key) & 2 != 0

    def matches(self, key: bytes, id: str) -> bool:
        """Whether the key's line has this id."""
        return self._marks.get(key) >> 2 == _shortened(id)

    def add(self, answer: Answer) -> bool:
        """Count a line in; False, and nothing is changed, where the key has one."""
        key, id, line, code = answer
        if not self._marks.add(key, _shortened(id) << 2 | (code is not None) << 1 | 1):
            return False
        if code is None:
            self.answered += 1
        else:
            self.tally.add(code, line)
        return True


def scan(path: str | os.PathLike[str]) -> Done:
    """What an output file holds; nothing where there is no file. Nothing is changed: see ``repair``.

    A torn last line is left out. UserError names a line before it that is damaged, a line that is not an answer, and
    one that answers what another has answered.
    """
    done, name = Done(), Path(path).name
    if not os.path.lexists(path):
        return done
    with _opened(path) as file:
        size, place = os.fstat(file.fileno()).st_size, 0
        for number, line in enumerate(file, start=1):
            start, place = place, place + len(line)
            last = place >= size
            if last and not line.endswith(b"\n") and _ours(line):
                done.torn_bytes = len(line)
                break
            done.whole_bytes = place
            if line.isspace():
                continue
            try:
                answer = _read(line)
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                if last and isinstance(error, json.JSONDecodeError | UnicodeDecodeError) and _ours(line):
                    done.whole_bytes, done.torn_bytes = start, len(line)
                    break
                what = f"line {number:,} of {name}"
                if not _ours(line):
                    raise UserError(
                        f"{what} is not an answer that penstock wrote: use another -o, or --overwrite"
                    ) from error
                raise UserError(f"{what} is damaged ({one_line(str(error), 80)}): delete it, {_WAYS_OUT}") from error
            if not done.add(answer):
                what = one_line(str(json.loads(line)["custom_id"]), 80)
                raise UserError(f"line {number:,} of {name} answers {what} again: delete one of the two, {_WAYS_OUT}")
    return done


def repair(path: str | os.PathLike[str], done: Done) -> int:
    """Cut a torn last line off; returns its bytes. done: of a scan since the file was written to."""
    if done.torn_bytes:
        try:
            with open(path, "r+b") as file:
                file.truncate(done.whole_bytes)
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}): use another -o") from error
    return done.torn_bytes


def drop_errors(path: str | os.PathLike[str], done: Done) -> int:
    """Take the error lines out, all or none of them, so that they run again; returns how many.

    The file is replaced by a copy without them (and without a torn last line): scan it again afterwards. JobStopped
    where there is no room for the copy; the file is as it was then.
    """
    if not done.errors:
        return 0
    target = Path(os.path.realpath(path))
    copy: Path | None = None
    try:
        copy = target.with_name(f".{target.name}.retry")  # of one name: the next start writes over what a crash left
        with open(copy, "wb") as file, open(target, "rb") as whole:
            shutil.copymode(target, copy)
            file.writelines(line for line in _lines(whole, done.whole_bytes) if _read(line).code is None)
            file.flush()
            os.fsync(file.fileno())
        os.replace(copy, target)
        copy = None
        sync_directory(target.parent)
    except OSError as error:
        raise JobStopped(
            f"{target.name} cannot be written again without its error lines ({error.strerror}): a copy of it needs"
            f" {format_bytes(done.whole_bytes)} in {target.parent}. Make room there, then start the same command again"
        ) from error
    finally:
        if copy is not None:
            copy.unlink(missing_ok=True)
    return done.errors


def _opened(path: str | os.PathLike[str]) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): use another -o") from error


def _read(line: bytes) -> Answer:
    if (usual := _USUAL.fullmatch(line)) is not None:
        id, custom_id, number, implicit = usual.groups()
        key = key_of_line(int(number)) if implicit else key_of_custom_id(custom_id.decode())
        return Answer(key, id.decode(), int(number))
    record = json.loads(line.decode())
    id, custom_id, number, error = record["id"], record["custom_id"], record["line"], record["error"]
    code = None if error is None else error["code"]
    if not _ID.fullmatch(id) or not isinstance(custom_id, str) or not isinstance(number, int):
        raise ValueError("its id, custom_id or line is not one of penstock's")
    if error is not None and not isinstance(code, str):
        raise ValueError("the code of its error is not a word")
    by_line = record.get("implicit_id") is True or code == DUPLICATE
    return Answer(key_of_line(number) if by_line else key_of_custom_id(custom_id), id, number, code)


def _ours(line: bytes) -> bool:
    """Whether a line begins as the output's do; zeros are what a power failure leaves of what was not yet on disk."""
    return line.startswith(_BEGIN) or _BEGIN.startswith(line) or not line.strip(b"\0\n")


def _shortened(id: str) -> int:
    return int(id.removeprefix(ID_PREFIX), 16) & _SHORTENED


def _lines(file: BinaryIO, nbytes: int) -> Iterator[bytes]:
    """Lines up to a place in the file, blank ones left out."""
    place = 0
    while place < nbytes and (line := file.readline()):
        place += len(line)
        if not line.isspace():
            yield line
