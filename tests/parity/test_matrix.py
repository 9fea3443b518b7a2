"""Every family on every placement, in one shape that has it all: ragged prompts, chunked, more than there are rows."""

from typing import Any

import pytest
from tests.parity.conftest import NEW_TOKENS
from tests.parity.families import FAMILIES
from tests.parity.harness import run
from tests.parity.reference import generate

SHAPE = {"rows": 4, "sweep_tokens": 24, "batch_tokens": 10}
PLACEMENTS: dict[str, dict[str, Any]] = {
    "cpu": {"weights": "cpu=100%"},
    "disk": {"weights": "disk=100%", "slots": 1},
    "half": {"weights": "cpu=50%,disk=50%"},
    "kv-on-disk": {"kv": "disk=100%"},
    "activations-on-disk": {"activations": "disk=100%"},
    "gpu": {
        "device": "emulated",
        "weights": "gpu=30%,cpu=30%,disk=40%",
        "kv": "gpu=40%,cpu=30%,disk=30%",
        "activations": "gpu=40%,cpu=30%,disk=30%",
    },
    "split": {
        "device": "emulated",
        "weights": "gpu=20%,cpu=60%,disk=20%",
        "kv": "cpu=60%,disk=40%",
        "cpu_layers": 1,
        "cpu_tokens": 10,
    },
}
PLACEMENTS["cuda"] = {**PLACEMENTS["gpu"], "device": "cuda"}
PLACEMENTS["cuda-split"] = {**PLACEMENTS["split"], "device": "cuda"}
FROM_CPU = ("cpu→gpu", "gpu→cpu", "disk→cpu")
LANES = {"activations-on-disk": ("cpu→disk", "disk→cpu"), "gpu": FROM_CPU, "cuda": FROM_CPU}
LANES |= {"split": FROM_CPU, "cuda-split": FROM_CPU}
MARKED = [pytest.param(name, marks=[pytest.mark.gpu] * name.startswith("cuda")) for name in PLACEMENTS]
JOINED = ("deepseek_v2-mla", "deepseek_v3-mla", "gemma4-shared-kv")  # all layers are computed in one place

# One worker per family, so that its checkpoint and reference are made once.
each_family = pytest.mark.parametrize("family", [pytest.param(f, marks=pytest.mark.xdist_group(f)) for f in FAMILIES])


@each_family
def test_reference_depends_on_its_input(subject, family):
    """A model that says one thing for ever proves nothing."""
    model = subject(family)
    prompt = model.prompts[0]
    turned = generate(model.model, prompt[::-1], 1)
    assert (turned.logits[0] - model.answers[0].logits[0]).abs().max() > 0.01 * turned.logits.abs().max()
    assert sum(len(set(answer.tokens)) > 1 for answer in model.answers) >= len(model.answers) / 2


def skip_refused(family: str, placement: str) -> None:
    """Skip what is refused, as tests of its own show."""
    if placement.endswith("split") and family in JOINED:
        pytest.skip("its layers are computed in one place")


@pytest.mark.parametrize("placement", MARKED)
@each_family
def test_matrix(subject, compare, family, placement):
    skip_refused(family, placement)
    model = subject(family)
    tokens, trail = run(model.path, model.prompts, NEW_TOKENS, **SHAPE, **PLACEMENTS[placement])
    compare(model.answers, tokens, trail.logits)
    assert trail.micro_batches > 1 and trail.chunks and trail.rows < len(model.prompts)
    assert all(trail.moved[lane] for lane in LANES.get(placement, ()))
