"""A batch job of unequal requests that share a system prompt: drawn from a seed, written as JSON lines."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

SPREAD = 0.7  # of the normal below the log-normal
SPECIAL_IDS = 3  # token ids below are the checkpoint's special ones


@dataclass(frozen=True)
class Lengths:
    """Tokens: the least and most that may be drawn, and about the mean."""

    least: int
    most: int
    mean: int

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """From LEAST,MOST,MEAN."""
        least, most, mean = map(int, text.split(","))
        if not 0 < least <= mean <= most:
            raise ValueError(f"{text} is not LEAST,MOST,MEAN with LEAST <= MEAN <= MOST")
        return cls(least, most, mean)

    def draw(self, chance: random.Random, beyond: int = 0) -> int:
        """A log-normal length, clipped; `beyond` tokens are always there, the rest is what is drawn."""
        mu = math.log(self.mean - beyond) - SPREAD**2 / 2
        return min(self.most, max(self.least, beyond + round(chance.lognormvariate(mu, SPREAD))))


@dataclass(frozen=True)
class Request:
    """Token ids of the prompt, and exactly how many tokens are to be generated."""

    prompt: list[int]
    output: int


def draw_requests(
    number: int, prompts: Lengths, outputs: Lengths, shared: int, vocabulary: int, seed: int
) -> list[Request]:
    """Requests whose first `shared` prompt tokens are the same for all. ValueError where a prompt could be shorter."""
    if prompts.least <= shared:
        raise ValueError(f"prompts of {prompts.least} tokens cannot begin with {shared} shared ones and differ")
    chance = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [chance.randrange(SPECIAL_IDS, vocabulary) for _ in range(count)]

    header = ids(shared)
    lengths = [(prompts.draw(chance, shared), outputs.draw(chance)) for _ in range(number)]
    return [Request(header + ids(prompt - shared), output) for prompt, output in lengths]


def write(path: Path, requests: list[Request]) -> None:
    with path.open("w") as file:
        for number, request in enumerate(requests):
            line = {"custom_id": f"request-{number:04}", "prompt_token_ids": request.prompt}
            file.write(json.dumps(line | {"max_tokens": request.output}) + "\n")


@dataclass(frozen=True)
class Load:
    """What a job makes any engine do.

    outputs: tokens generated, each the one sample of a sweep. longest_output: sweeps that the job takes at least.
    computed: positions that pass through the layers, the shared prefix once and a row's last token never. shared:
    tokens of that prefix. row_tokens: tokens of KV that a row in flight holds of its own, in the mean over the sweeps
    that rows stay.
    """

    requests: int
    prompt_tokens: int
    outputs: int
    longest_output: int
    computed: int
    shared: int
    row_tokens: float

    @classmethod
    def of(cls, requests: list[Request], shared: int) -> Load:
        prompts = [len(request.prompt) for request in requests]
        outputs = [request.output for request in requests]
        own = sum(prompts) - len(prompts) * shared
        held = sum(out * (prompt - shared + out / 2) for prompt, out in zip(prompts, outputs, strict=True))
        return cls(
            requests=len(requests),
            prompt_tokens=sum(prompts),
            outputs=sum(outputs),
            longest_output=max(outputs),
            computed=shared + own + sum(outputs) - len(outputs),
            shared=shared,
            row_tokens=held / sum(outputs),
        )

    def rows(self, kv_bytes: int, token_bytes: int) -> int:
        """Rows in flight for which so many bytes of KV are room."""
        return max(1, min(self.requests, int((kv_bytes / token_bytes - self.shared) / self.row_tokens)))


def kv_token_bytes(config: dict, itemsize: int) -> int:
    """KV of one token in all layers."""
    return 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * itemsize
