"""What every runner prints as its last line: one JSON object that compare.py reads."""

from __future__ import annotations

import json
import resource
import time
from importlib import metadata


class Clock:
    """Seconds of loading (construction until `started`) and of generating (from there until `report`)."""

    def __init__(self) -> None:
        self.constructed = self.begun = time.perf_counter()

    def started(self) -> None:
        self.begun = time.perf_counter()

    def report(self, *, engine: str, tokens: int, packages: tuple[str, ...], **settings: object) -> None:
        """Print the line: `tokens` are the generated ones, `packages` those whose versions matter."""
        seconds = time.perf_counter() - self.begun
        line = {
            "engine": engine,
            **settings,
            "tokens": tokens,
            "seconds": round(seconds, 2),
            "load_seconds": round(self.begun - self.constructed, 2),
            "tok_s": round(tokens / seconds, 3),
            "rss_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "versions": {name: metadata.version(name) for name in packages},
        }
        print(json.dumps(line), flush=True)
