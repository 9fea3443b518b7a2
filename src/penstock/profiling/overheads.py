"""What a sweep costs besides arithmetic and bytes: a small random model in the real engine, by how the work is cut."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from transformers import LlamaConfig, PretrainedConfig, Qwen3MoeConfig

from penstock.engine.build import Blueprint, assemble, blueprint
from penstock.engine.engine import Engine
from penstock.engine.sampler import Draw, sample
from penstock.machine.machine import Curve
from penstock.memory.clock import Clock, Lane
from penstock.model.source import Source
from penstock.plan.policy import Policy, Shares, Tier
from penstock.plan.types import Placement
from penstock.profiling.fits import fit_line, fit_terms
from penstock.profiling.place import Place
from penstock.profiling.timing import median_s
from penstock.sampling import Sampling

LAYERS = (2, 8)
EXPERTS = (8, 64)
# In and out of most products: as wide as a small model's, so that they are handed to threads as those are.
_WIDTH, _HEAD = 512, 64
_PRODUCTS = 7  # of a layer
# Rows, and rows of a micro-batch: more than any kernel for few tokens takes, since others take longer to be called.
CUTS = ((8, 8), (64, 8), (64, 64))
VOCABULARIES = (2048, 65536)
_SAMPLED_ROWS = 32
_EXPERT_ROWS, _EXPERT_LAYERS = 8, 2
_PROMPT = 4
_ROW_TOKENS = 128
_LAYER_WEIGHTS = 5 * _WIDTH * _WIDTH + 2 * _WIDTH * _HEAD  # queries, output, three of the MLP; keys and values
_GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=0, max_tokens=_ROW_TOKENS, stop=(), stop_ids=frozenset())


@dataclass(frozen=True, slots=True)
class Overheads:
    """Seconds besides products, attention and what is between them.

    sweep_s: of a sweep. visit_s: of a call that passes a page, the mean of attention's and MLP's: the model's Python
    from one stop to the next, and its part of serving the page. row_s: of a
    row that a token is drawn for. logit_s: of one of its logits. expert_s: of an expert that a call touches: its tokens
    told from the others, its calls made.
    """

    sweep_s: float
    visit_s: float
    row_s: float
    logit_s: float
    expert_s: float


@dataclass(frozen=True, slots=True)
class Swept:
    """Median seconds of a decode sweep of so many pages, micro-batches and rows, without its products' FLOP."""

    pages: int
    calls: int
    rows: int
    seconds: float


def measure_overheads(
    place: Place,
    budget_s: float,
    flops: Curve,
    product_s: float,
    layers: Sequence[int] = LAYERS,
    cuts: Sequence[tuple[int, int]] = CUTS,
    vocabularies: Sequence[int] = VOCABULARIES,
    experts: Sequence[int] = EXPERTS,
) -> Overheads:
    """Decode sweeps of models of several depths, cut in several ways, and of several numbers of experts; draws from
    vocabularies of several sizes. flops: of products by tokens of a call, product_s: of each besides, in the arithmetic
    of ``place.auto``."""
    share_s = 0.6 * budget_s / (len(layers) * len(cuts))
    swept = [one for depth in layers for one in _sweeps(place, flops, product_s, depth, cuts, share_s)]
    drawn = [draw_s(place, size, 0.2 * budget_s / len(vocabularies)) for size in vocabularies]
    routed = [routed_s(place, number, 0.2 * budget_s / len(experts)) for number in experts]
    return overheads_of(swept, vocabularies, drawn, experts, routed)


def overheads_of(
    swept: Sequence[Swept],
    vocabularies: Sequence[int],
    drawn: Sequence[float],
    experts: Sequence[int],
    routed: Sequence[float],
) -> Overheads:
    """The terms that explain the sweeps' times, what a logit adds to a drawn row, and an expert to a layer; seconds."""
    amounts = [(1.0, s.pages * s.calls, s.rows) for s in swept]
    per_sweep, per_visit, per_row = fit_terms(amounts, [s.seconds for s in swept])
    per_logit, per_expert = fit_line(vocabularies, drawn).each_s, fit_line(experts, routed).each_s
    return Overheads(per_sweep, per_visit, per_row, per_logit, per_expert)


def draw_s(place: Place, vocabulary: int, budget_s: float, rows: int = _SAMPLED_ROWS) -> float:
    """Seconds of one row's greedy draw among several."""
    logits = place.noise(rows * vocabulary, place.auto.compute).view(rows, vocabulary)
    draws = [Draw(_GREEDY, str(row), _PROMPT) for row in range(rows)]
    return median_s(lambda: sample(logits, draws).tolist(), budget_s) / rows


def routed_s(place: Place, experts: int, budget_s: float, layers: int = _EXPERT_LAYERS) -> float:
    """Seconds that one layer of so many experts takes, as part of a sweep whose every token is sent to all of them."""
    model = _small(place, layers, experts)
    with _engine(place, model, _EXPERT_ROWS, _EXPERT_ROWS) as engine:
        return sweep_s(engine, _EXPERT_ROWS, budget_s) / layers


def _sweeps(
    place: Place, flops: Curve, product_s: float, layers: int, cuts: Sequence[tuple[int, int]], budget_s: float
) -> Iterator[Swept]:
    model = _small(place, layers)
    for rows, batch in cuts:
        with _engine(place, model, rows, batch) as engine:
            products_s = 2.0 * rows * layers * _LAYER_WEIGHTS / flops.at(min(rows, batch))
            pages, calls = len(engine.model.first_order), -(-rows // batch)
            products_s += calls * layers * _PRODUCTS * product_s
            yield Swept(pages, calls, rows, besides(sweep_s(engine, rows, budget_s), products_s))


def besides(seconds: float, products_s: float) -> float:
    """What a sweep takes besides its products, which are a third of it or so.

    Half of it at least: a curve that was measured while something else ran would take all.
    """
    return max(seconds - products_s, seconds / 2)


def sweep_s(engine: Engine, rows: int, budget_s: float) -> float:
    """Median seconds of an engine's decode sweeps with so many rows."""
    for row in range(rows):
        engine.add(str(row), [3 + (row * 7 + at) % 50 for at in range(_PROMPT)], _GREEDY)
    taken: list[float] = []
    start = time.perf_counter()
    while (report := engine.sweep()) is not None:
        if report.decode_tokens == rows:
            taken.append(report.seconds)
        if time.perf_counter() - start > budget_s and len(taken) > 3:
            break
    return median(taken[1:])


def _small(place: Place, layers: int, experts: int = 0) -> Blueprint:
    """A model with products of _WIDTH; with experts, all of which every token is sent to, one of next to no work."""
    width = _HEAD if experts else _WIDTH
    sizes = {
        "vocab_size": 64,
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // _HEAD,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2 * _ROW_TOKENS,
    }
    config: PretrainedConfig = LlamaConfig(**sizes)
    if experts:
        routed = {"moe_intermediate_size": width, "num_experts": experts, "num_experts_per_tok": experts}
        config = Qwen3MoeConfig(**sizes, **routed, head_dim=_HEAD)
    source = Source("overheads", "random", Path(), config, None, "bfloat16")
    return blueprint(source, place.auto, one_group=True)


@contextmanager
def _engine(place: Place, model: Blueprint, rows: int, batch: int) -> Iterator[Engine]:
    """An engine with all of the model in the memory of the device that computes."""
    tier: Tier = place.device.compute_tier
    footprint = model.footprint()
    held = Shares.from_mapping({tier: 1.0})
    policy = Policy(held, held, held, rows=rows, sweep_tokens=max(rows, _PROMPT) * _PROMPT, batch_tokens=batch)
    kv_bytes = rows * (_ROW_TOKENS // footprint.block_tokens + 2) * footprint.kv_block
    placement = Placement(policy, (tier,) * len(footprint.pages), {tier: kv_bytes}, 0, {tier: 0})
    lane: Lane = "gpu-compute" if tier == "gpu" else "cpu-compute"
    with torch.inference_mode(False):
        engine = assemble(model, placement, place.device, Clock(lane), None)
    try:
        yield engine
    finally:
        engine.close()
