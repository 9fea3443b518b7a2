"""The user's page caches as a whole: what there is, and taking it away."""

import fcntl
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from penstock.directories import cache_directory
from penstock.errors import UserError
from penstock.model.page_cache import ABOUT, INDEX, PAGES


@dataclass(frozen=True, slots=True)
class Kept:
    """One cache. model, stored: of which model, in which precision; empty where an older version wrote it. used_s: when
    it was last opened, in seconds since 1970. in_use: by a run that is going on."""

    key: str
    path: Path
    model: str
    stored: str
    nbytes: int
    used_s: float
    in_use: bool


def listed(root: Path | None = None) -> list[Kept]:
    """All caches that are whole, those that were used last first."""
    home = root or cache_directory() / "pages"
    found = [_kept(index.parent) for index in home.glob(f"*/{INDEX}") if not index.parent.name.endswith(".building")]
    return sorted((kept for kept in found if kept is not None), key=lambda kept: -kept.used_s)


def remove(caches: Iterable[Kept]) -> int:
    """Delete caches; the bytes that became free. A cache that a run uses by now is left."""
    freed = 0
    for kept in caches:
        with _claim(kept.path) as free:
            if not free:
                continue
            try:
                shutil.rmtree(kept.path)
            except OSError as error:
                raise UserError(f"{kept.path} cannot be deleted: {error.strerror}") from error
            freed += kept.nbytes
    return freed


def _kept(home: Path) -> Kept | None:
    try:
        about = json.loads((home / INDEX).read_bytes()).get(ABOUT) or {}
        nbytes, used = (home / PAGES).stat().st_size, (home / INDEX).stat().st_mtime
        with _claim(home) as free:
            return Kept(home.name, home, about.get("model", ""), about.get("stored", ""), nbytes, used, not free)
    except (OSError, ValueError, AttributeError):
        return None  # deleted meanwhile, or damaged: the next run builds it again


@contextmanager
def _claim(home: Path) -> Iterator[bool]:
    """Whether nobody uses a cache; nobody begins to, as long as the context lasts."""
    with (home / INDEX).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
