"""A job of unequal requests as ragged.py writes it, and a model that accelerate reads from disk, for its runners."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

EMBEDDING = "embedding"


@dataclass(frozen=True)
class Request:
    """Token ids of the prompt, and exactly how many tokens are to be generated."""

    prompt: list[int]
    output: int


def read_job(path: Path) -> list[Request]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [Request(line["prompt_token_ids"], line["max_tokens"]) for line in lines]


def load(model: str, dtype: str, resident: str, offload_dir: str) -> PreTrainedModel:
    """A model of which some weights stay in memory, and the rest is read in place from the checkpoint.

    resident: EMBEDDING (with what is neither it nor a layer), or a size that accelerate fills in its own order.
    """
    if resident == EMBEDDING:
        layers = AutoConfig.from_pretrained(model).num_hidden_layers
        kept = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")
        homes = dict.fromkeys(kept, "cpu") | {f"model.layers.{i}": "disk" for i in range(layers)}
        where = {"device_map": homes}
    else:
        where = {"device_map": "auto", "max_memory": {"cpu": resident}}
    return AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), offload_folder=offload_dir, **where)


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
