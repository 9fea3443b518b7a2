"""Packed weights: an engine that streams codes answers what transformers does with the same weights unpacked."""

import copy

import pytest
import torch
from tests.parity.conftest import NEW_TOKENS
from tests.parity.harness import PAGE_BYTES, run
from tests.parity.reference import generate
from tests.parity.test_matrix import LANES, MARKED, PLACEMENTS, SHAPE, skip_refused

from penstock.engine.build import Blueprint, blueprint
from penstock.model import precision, source
from penstock.quant.grouped import Grouped
from penstock.quant.packed import Packed
from penstock.quant.rounding import pack

# stacked experts, experts that are stored the other way round beside sinks, matrices of no nn.Linear, latent attention
FAMILIES = ("llama", "qwen3_moe", "gpt_oss-sinks", "gpt2", "deepseek_v3-mla", "gemma3", "starcoder2")
PACKINGS = ("int4g32+head-int8g64", "int8g64", "int4g64")

each_family = pytest.mark.parametrize("family", [pytest.param(f, marks=pytest.mark.xdist_group(f)) for f in FAMILIES])


def plan_of(path, packing: str) -> Blueprint:
    found = source.resolve(str(path))
    return blueprint(found, precision.choose(f"float32+{packing}", None, "cpu", False), page_bytes=PAGE_BYTES)


def unpacked(model, plan: Blueprint):
    """A copy of the model with what is packed in its place."""
    turned = copy.deepcopy(model)
    parameters = dict(turned.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for piece in (piece for page in plan.layout.pages for piece in page.slices):
            if (form := Grouped.named(piece.dtype)) is not None:
                values = plan.sources[piece.param].load(piece.start, piece.stop).float()
                values = values.transpose(-1, -2) if piece.turned else values
                rows = torch.from_numpy(pack(values.reshape(-1, piece.shape[-1]).numpy(), form))
                packed = Packed(form, piece.shape[-1], rows.view(*piece.shape[:-1], -1)).wide(torch.float32)
                packed = packed.transpose(-1, -2) if piece.turned else packed
                parameters[piece.param][piece.start : piece.stop] = packed
    return turned


@pytest.mark.parametrize("placement", MARKED)
@each_family
def test_tokens_are_those_of_the_unpacked_weights(subject, compare, family, placement):
    skip_refused(family, placement)
    model = subject(family)
    packing = PACKINGS[list(PLACEMENTS).index(placement) % len(PACKINGS)]
    turned = unpacked(model.model, plan_of(model.path, packing))
    answers = [generate(turned, prompt, NEW_TOKENS) for prompt in model.prompts]
    assert (answers[0].logits[0] - model.answers[0].logits[0]).abs().max() > 0  # packing is not without effect
    dtype = f"float32+{packing}"
    tokens, trail = run(model.path, model.prompts, NEW_TOKENS, dtype=dtype, **SHAPE, **PLACEMENTS[placement])
    compare(answers, tokens, trail.logits)
    assert all(trail.moved[lane] for lane in LANES.get(placement, ()))


def packed_names(path, packing: str) -> set[str]:
    pages = plan_of(path, packing).layout.pages
    return {piece.param for page in pages for piece in page.slices if Grouped.named(piece.dtype)}


def test_layers_are_packed_and_nothing_else_unless_asked(subject):
    path = subject("llama").path
    names = packed_names(path, "int4g64")
    assert {name.split(".")[-2] for name in names} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    assert len(names) == 3 * 7
    assert packed_names(path, "head-int8g64") == {"lm_head.weight"}


def test_routers_are_not_packed(subject):
    names = packed_names(subject("qwen3_moe").path, "int4g64")
    assert any("experts" in name for name in names)
    assert not any(name.endswith("mlp.gate.weight") for name in names)
