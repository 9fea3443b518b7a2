"""Every shape of a run, for the families that differ most, with half of the pages streamed."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.parity.conftest import NEW_TOKENS
from tests.parity.harness import Trail, run
from tests.parity.reference import generate

DIFFERENT = [
    pytest.param(family, marks=pytest.mark.xdist_group(family))
    for family in ("llama", "gpt_oss-sinks", "deepseek_v3-mla", "gemma4-shared-kv")
]
WEIGHTS = {"weights": "cpu=50%,disk=50%"}
ROOM = {"sweep_tokens": 200, "batch_tokens": 200}

SHAPES: dict[str, tuple[dict[str, Any], Callable[[Trail], object]]] = {
    "one-row": ({"rows": 1, **ROOM}, lambda t: t.rows == 1 and t.micro_batches == 1),
    "one-call": ({"rows": 6, **ROOM}, lambda t: t.rows == 6 and t.micro_batches == 1 and not t.chunks),
    "several-micro-batches": ({"rows": 6, "sweep_tokens": 200, "batch_tokens": 4}, lambda t: t.micro_batches > 4),
    "chunked-prefill": ({"rows": 6, "sweep_tokens": 7, "batch_tokens": 7}, lambda t: t.chunks > 6),
    "more-prompts-than-rows": ({"rows": 2, **ROOM}, lambda t: t.rows == 2),
    "static": ({"batch_size": 2, "num_batches": 2, "batch_tokens": 12}, lambda t: t.rows == 4 and t.micro_batches >= 2),
    "load-then-compute": ({"rows": 3, "slots": 1, "sweep_tokens": 16, "batch_tokens": 8}, lambda t: t.rows == 3),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", DIFFERENT)
def test_shape(subject, compare, family, shape):
    model = subject(family)
    how, shows = SHAPES[shape]
    answers = model.answers[:3] if shape == "one-row" else model.answers
    tokens, trail = run(model.path, [answer.prompt for answer in answers], NEW_TOKENS, **WEIGHTS, **how)
    compare(answers, tokens, trail.logits)
    assert shows(trail)


@pytest.mark.parametrize("kv", ["cpu=100%", "cpu=50%,disk=50%"])
@pytest.mark.parametrize("family", DIFFERENT)
def test_rows_are_dropped_and_recomputed(subject, compare, family, kv):
    model = subject(family)
    prompts, count = [prompt[:n] for prompt, n in zip(model.prompts, (14, 5, 15, 9), strict=False)], 24
    tokens, trail = run(
        model.path, prompts, count, kv=kv, spare_blocks=2, block_tokens=16, sweep_tokens=20, batch_tokens=10, **WEIGHTS
    )
    compare([generate(model.model, prompt, count) for prompt in prompts], tokens, trail.logits)
    assert trail.dropped or kv != "cpu=100%"


def test_a_row_that_crosses_the_longrope_switch_is_recomputed(subject, compare):
    model = subject("phi3-longrope")
    tokens, trail = run(model.path, model.prompts, NEW_TOKENS, rows=6, **ROOM)
    compare(model.answers, tokens, trail.logits)
    assert trail.dropped == sum(len(p) <= 20 < len(p) + NEW_TOKENS - 1 for p in model.prompts)


def test_kv_on_disk_moves_to_disk(subject, compare):
    """Rows that are long enough to fill blocks, so that something does move."""
    model = subject("llama")
    prompts = [prompt * 3 for prompt in model.prompts[:3]]
    tokens, trail = run(model.path, prompts, 6, kv="disk=100%", sweep_tokens=32, batch_tokens=16)
    compare([generate(model.model, prompt, 6) for prompt in prompts], tokens, trail.logits)
    assert any(move.target[0] == "disk" for sweep in trail.sweeps for move in sweep.moves)
