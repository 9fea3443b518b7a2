"""Models on the hub: fetching their files, and telling how far that is."""

import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from tqdm.std import tqdm  # type: ignore[import-untyped]  # of huggingface_hub; it has no types

from penstock.errors import UserError, first_line
from penstock.model.safetensors_index import INDEX_NAME

Progress = Callable[[int, int], None]  # bytes done, of how many

SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.py")
WEIGHTS = "*.safetensors"
# The HTTP client's own errors too, whichever client huggingface_hub stands on.
FAILURES: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)),
)


def fetch(repository: str) -> Path:
    """The local snapshot of a model's small files: config, tokenizer, index.

    Honours HF_HOME, HF_TOKEN and HF_HUB_OFFLINE. UserError, in one line, where the hub does not give them.
    """
    return _snapshot(repository, [*SMALL_FILES])


def fetch_weights(repository: str, small: Path, progress: Progress | None) -> Path:
    """The same with the weights; small: the snapshot of the small files."""
    bar = {"tqdm_class": _bar(progress, _weight_bytes(small))} if progress is not None else {}
    return _snapshot(repository, [*SMALL_FILES, WEIGHTS], **bar)


def _snapshot(repository: str, patterns: list[str], **how: Any) -> Path:
    """Files of the top folder only."""
    try:
        found = snapshot_download(repository, allow_patterns=patterns, ignore_patterns=["*/*", "consolidated*"], **how)
    except FAILURES as error:
        raise UserError(f"{repository} is no local path, and the hub does not give it: {first_line(error)}") from error
    return Path(found)


def _weight_bytes(small: Path) -> int:
    """Bytes of a sharded model's tensors, as its index says; 0 where it does not."""
    try:
        return int(json.loads((small / INDEX_NAME).read_bytes())["metadata"]["total_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _bar(progress: Progress, least_bytes: int) -> type[Any]:
    """A progress bar, as the hub makes them, that draws nothing and tells bytes; these are so many at least."""

    class Bar(tqdm):  # type: ignore[misc]  # as above
        monitor_interval = 0  # no thread that watches it

        def __init__(self, *args: Any, name: str | None = None, disable: bool | None = None, **kwargs: Any) -> None:
            # some versions name their bars, and say whether any is to be drawn
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False})

        def display(self, *_: Any, **__: Any) -> None:
            total = max(int(self.total or 0), least_bytes)
            if self.unit == "B" and self.n:  # others count files, or nothing is to be fetched
                progress(min(int(self.n), total), total)

    Bar.set_lock(threading.RLock())  # threads are all that share it
    return Bar
