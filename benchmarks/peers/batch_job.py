"""A job of unequal requests as ragged.py writes it, for the runners that take one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Request:
    """Token ids of the prompt, and exactly how many tokens are to be generated."""

    prompt: list[int]
    output: int


def read_job(path: Path) -> list[Request]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [Request(line["prompt_token_ids"], line["max_tokens"]) for line in lines]


class Watch:
    """Sweeps (calls of the model) and bytes that this process read from storage, since it was made."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.sweeps = 0
        self._read_before = read_bytes()
        model.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.sweeps += 1

    def figures(self, tokens: int) -> dict[str, float]:
        """Rows that were not done in a sweep, in the mean, and what was read for all tokens."""
        return {
            "sweeps": self.sweeps,
            "rows_mean": round(tokens / self.sweeps, 2),
            "read_bytes": read_bytes() - self._read_before,
        }


def read_bytes() -> int:
    """What this process made the kernel read from storage, by whichever way (the page cache's own hits are none)."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])
