"""FlexGen's measured throughput at prompts of 512 and 32 generated tokens, predicted with one preset of its machine."""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from penstock.machine.presets import preset
from penstock.plan.case import Case
from penstock.plan.given import given_placement
from penstock.plan.plan import Plan
from penstock.plan.question import Question
from penstock.plan.reasons import priced
from penstock.plan.shape import AttentionShape, ModelShape, PageShape
from penstock.plan.shares import parse_shares
from penstock.plan.traffic import traffic_bytes
from penstock.plan.types import Asked, Footprint, Ledger, Length
from penstock.planner import shape_of
from penstock.schedule.types import GroupSpec

VOCABULARY, BLOCK_TOKENS = 50272, 16
HIDDEN = {"6.7b": 4096, "30b": 7168, "175b": 12288}
LAYERS = {"6.7b": 32, "30b": 48, "175b": 96}
PAGES = 6  # a layer: two of attention, four of the MLP


def opt(size: str, bits: int | None = None, kv_bits: int | None = None) -> ModelShape:
    """OPT and its KV in float16, or in fewer bits and what groups of 64 share, in pages of a sixth of a layer."""
    hidden, layers = HIDDEN[size], LAYERS[size]
    weights = 12 * hidden * hidden // PAGES
    stored_bits = 16.0 if bits is None else bits + 0.5
    pages = [
        PageShape(int(stored_bits / 8 * weights), weights, layer, matrices=2 if i < 2 else 1)
        for layer in range(layers)
        for i in range(PAGES)
    ]
    head = VOCABULARY * hidden // 7
    pages += [PageShape(int(stored_bits / 8 * head), head, None, samples_only=True)] * 7
    pages.append(PageShape(2 * 2050 * hidden, 2050 * hidden, None, table=True))
    token = 4 * hidden if kv_bits is None else int(2 * hidden * (kv_bits + 0.5) / 8)
    elements = 0 if kv_bits is None else 2 * hidden
    attention = [AttentionShape(token, 4 * hidden, None, layer * PAGES, elements) for layer in range(layers)]
    footprint = Footprint(
        pages=[page.nbytes for page in pages],
        tables=frozenset({len(pages) - 1}),
        core=(13 * layers + 2) * 2 * hidden,
        call_bytes=int(2 * (8 * hidden + 1.4 * 4 * hidden)),
        logit_bytes=4 * VOCABULARY,
        kv_block=layers * BLOCK_TOKENS * token,
        block_tokens=BLOCK_TOKENS,
        staged_layer=BLOCK_TOKENS * token,
        query_bytes=2 * hidden,
        answer_bytes=4 * (hidden + hidden // 128),
    )
    return ModelShape(
        name=f"opt-{size}",
        arithmetic="float16" if bits is None else f"float16<int{bits}",
        pages=pages,
        attention=attention,
        hidden_bytes=2 * hidden,
        traffic_bytes=layers * traffic_bytes(hidden, 3 * hidden, 4 * hidden, 2),
        vocabulary=VOCABULARY,
        footprint=footprint,
        weight_bits=stored_bits,
        operator_bytes=2 * 5 * hidden,
        heads=hidden // 128,
    )


@dataclass(frozen=True)
class Row:
    """A policy of the paper: parts of weights, KV and activations by tier, micro-batches, and what it reports."""

    size: str
    weights: str
    kv: str
    activations: str
    batch: int
    batches: int
    tok_s: float
    cpu_attention: bool = False
    weight_bits: int | None = None
    kv_bits: int | None = None
    overlap: bool = True


OPT_30B = Row("30b", "gpu=20%,cpu=80%", "cpu", "cpu", 48, 3, 7.32, cpu_attention=True)
OPT_175B = Row("175b", "cpu=50%,disk=50%", "disk", "cpu", 32, 8, 0.69, cpu_attention=True)
TABLE = {
    "6.7B": Row("6.7b", "gpu", "gpu", "gpu", 2, 1, 25.26),
    "30B": OPT_30B,
    "175B": OPT_175B,
    "6.7B 4-bit": Row("6.7b", "gpu", "gpu", "gpu", 72, 1, 29.12, weight_bits=4, kv_bits=4),
    "30B 4-bit KV": Row("30b", "cpu", "cpu", "cpu", 64, 8, 8.38, kv_bits=4),
    "175B 4-bit": Row("175b", "cpu", "cpu", "cpu", 48, 3, 1.12, weight_bits=4, kv_bits=4),
    "30B without overlap": replace(OPT_30B, overlap=False, tok_s=5.86),
    "175B without overlap": replace(OPT_175B, overlap=False, tok_s=0.59),
    "30B attention on the gpu": replace(OPT_30B, cpu_attention=False, tok_s=4.03),
    "175B attention on the gpu": replace(OPT_175B, cpu_attention=False, tok_s=0.62),
}


def plan(row: Row) -> Plan:
    shape, machine = opt(row.size, row.weight_bits, row.kv_bits), preset("t4-flexgen")
    case = Case(
        shape=shape,
        machine=machine,
        ledger=Ledger({tier: int(0.96 * nbytes) for tier, nbytes in machine.memory.items()}, {"cpu": 512 << 20}),
        lengths=[Length(512, 32)] * (row.batch * row.batches),
        asked=Asked(
            weights=parse_shares(row.weights),
            kv=parse_shares(row.kv),
            activations=parse_shares(row.activations),
            batch_size=row.batch,
            num_batches=row.batches,
            slots=None if row.overlap else 1,
            attention="cpu" if row.cpu_attention else None,
        ),
        groups=[GroupSpec(shape.footprint.kv_block)],
        weight_bits=row.weight_bits,
        kv_bits=row.kv_bits,
    )
    return priced(case, machine, "the paper's", given_placement(case))


@cache
def of_row(name: str) -> Plan:
    return plan(TABLE[name])


def tok_s(name: str) -> float:
    return of_row(name).predicted.total_tok_s


@pytest.mark.parametrize("name", TABLE)
def test_a_measured_value_is_predicted_within_a_fifth(name: str) -> None:
    assert tok_s(name) == pytest.approx(TABLE[name].tok_s, rel=0.20)


def test_attention_moves_to_the_gpu_at_a_loss_where_kv_has_to_cross_the_link() -> None:
    assert tok_s("30B attention on the gpu") < 0.65 * tok_s("30B")
    assert tok_s("175B attention on the gpu") > 0.9 * tok_s("175B")  # the disk holds it either way


@pytest.mark.parametrize("name", ["6.7B", "30B", "175B", "6.7B 4-bit", "30B 4-bit KV", "175B 4-bit"])
def test_the_policies_that_ran_are_said_to_fit(name: str) -> None:
    assert of_row(name).fits, of_row(name).why_not


def test_shapes_by_hand_are_those_of_the_model(tmp_path: Path) -> None:
    hidden = HIDDEN["6.7b"]
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {
                "model_type": "opt",
                "architectures": ["OPTForCausalLM"],
                "hidden_size": hidden,
                "word_embed_proj_dim": hidden,
                "ffn_dim": 4 * hidden,
                "num_hidden_layers": LAYERS["6.7b"],
                "num_attention_heads": 32,
                "vocab_size": VOCABULARY,
                "max_position_embeddings": 2048,
                "torch_dtype": "float16",
            }
        )
    )
    real, ours = shape_of(str(config), Question(machine="t4-flexgen")), opt("6.7b")
    assert real.attention == ours.attention
    assert real.page_bytes == pytest.approx(ours.page_bytes, rel=0.001)
    assert real.token_flops == ours.token_flops
    assert [page for page in real.pages if page.layer is not None] == ours.pages[: PAGES * LAYERS["6.7b"]]
    for name in ("arithmetic", "hidden_bytes", "traffic_bytes", "vocabulary", "operator_bytes", "heads"):
        assert getattr(real, name) == getattr(ours, name), name
    for name in ("kv_block", "block_tokens", "call_bytes", "logit_bytes", "staged_layer"):
        assert getattr(real.footprint, name) == getattr(ours.footprint, name), name
