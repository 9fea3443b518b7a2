"""``--weight-bits`` and ``--kv-bits`` from end to end: page cache, budgets, jobs that go on, plans, and mistakes."""

import json

import pytest
import torch
from tests.parity import families
from transformers import AutoModelForCausalLM, LlamaConfig

from penstock import LLM, SamplingParams, UserError
from penstock.describe import describe
from penstock.free_bits import plan_of_free_bits
from penstock.plan.question import Question
from penstock.planner import make_plan

GREEDY = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
PROMPTS = [{"prompt_token_ids": [5, 6, 7, 8]}, {"prompt_token_ids": [9, 10]}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "model"
    families.build("llama").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A model whose embedding is its LM head."""
    path = tmp_path_factory.mktemp("tied") / "model"
    made = AutoModelForCausalLM.from_config(LlamaConfig(**{**families.GQA, "tie_word_embeddings": True}))
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.08)
    made.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def long_context(tmp_path_factory):
    """A model for prompts of several blocks of packed KV."""
    path = tmp_path_factory.mktemp("long") / "model"
    made = AutoModelForCausalLM.from_config(LlamaConfig(**{**families.GQA, "max_position_embeddings": 256}))
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.08)
    made.save_pretrained(path)
    return path


def make(path, **how):
    return LLM(str(path), **{"dtype": "float32", "page_bytes": 20_000, "unchecked": True, **how})


def tokens(path, **how):
    with make(path, **how) as llm:
        return [out.outputs[0].token_ids for out in llm.generate(PROMPTS, GREEDY)]


@pytest.mark.parametrize("bits", [4, 8])
def test_placement_does_not_change_tokens(model, bits):
    assert tokens(model, weight_bits=bits, weights="disk=100%") == tokens(model, weight_bits=bits)


def test_pages_shrink_and_nothing_is_packed_unasked(model):
    def pages(**how):
        with make(model, **how) as llm:
            return sum(page.nbytes for page in llm.blueprint.layout.pages if page.kind == "layer")

    whole = pages()
    assert pages(weight_bits=16) == whole
    assert pages(weight_bits=8) < 0.5 * whole
    assert pages(weight_bits=4) < 0.35 * whole


def test_a_tied_embedding_is_read_by_row_as_it_is_packed(tied):
    for how in ({}, {"weights": "disk=100%"}):
        with make(tied, weight_bits=8, lm_head_bits=8, **how) as llm:
            shared = [page for page in llm.blueprint.layout.pages if page.kind in ("head", "embedding")]
            assert {piece.dtype for page in shared for piece in page.slices} == {"int8g64"}
            again = [out.outputs[0].token_ids for out in llm.generate(PROMPTS, GREEDY)]
        assert again == tokens(tied, weight_bits=8, lm_head_bits=8)


def test_what_is_packed_runs_from_the_page_cache_alone(model):
    with make(model, weight_bits=4, weights="disk=100%") as llm:
        llm.generate(PROMPTS, GREEDY)
        packed = [page for page in llm.blueprint.layout.pages if page.kind == "layer"]
        assert packed and all(page.extents is not None for page in packed)
        assert not llm.blueprint.converted_bytes
    with (
        make(model, weight_bits=4, disk_memory=1000) as llm,
        pytest.raises(UserError, match=r"packed weights take \S+ KiB of page cache on disk, and --disk-memory is 1000"),
    ):
        llm.generate(PROMPTS, GREEDY)


def test_a_job_goes_on_as_it_began(model, tmp_path):
    lines = tmp_path / "in.jsonl"
    lines.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    out = tmp_path / "out.jsonl"
    with make(model, weight_bits=4) as llm:
        llm.run_batch(lines, out, GREEDY)
    with make(model, weight_bits=8) as llm, pytest.raises(UserError, match=r"int4g64, now float32\+int8g64"):
        llm.run_batch(lines, out, GREEDY)
    with make(model) as llm, pytest.raises(UserError, match=r"int4g64, now float32"):
        llm.run_batch(lines, out, GREEDY)
    with make(model, weight_bits=4) as llm:
        llm.run_batch(lines, out, GREEDY)
    assert len(out.read_text().splitlines()) == len(PROMPTS)


def test_a_plan_packs_and_is_run_as_it_is(model, tmp_path):
    asked = {"prompt_len": 8, "gen_len": 4, "num_prompts": 4, "dtype": "float32", "cpu_memory": 16 << 30}
    whole, packed = (make_plan(str(model), Question(**asked, weight_bits=bits)) for bits in (None, 4))
    assert packed.policy.weight_bits == 4 and packed.fits
    assert packed.memory["cpu"].weights < 0.5 * whole.memory["cpu"].weights
    assert describe(str(model), dtype="float32")["bytes"] > 0


def test_bits_that_are_free_are_chosen_for_speed(model):
    asked = {"prompt_len": 8, "gen_len": 4, "num_prompts": 4, "dtype": "float32", "cpu_memory": 16 << 30}
    speeds = {
        bits: make_plan(str(model), Question(**asked, weight_bits=bits)).predicted.total_tok_s for bits in (None, 8, 4)
    }
    best = plan_of_free_bits(str(model), Question(**asked), {"weight_bits": (8, 4)})
    assert best.predicted.total_tok_s == pytest.approx(max(speeds.values()))
    assert speeds[best.policy.weight_bits] == max(speeds.values())
    assert best.notes[0].count("tok/s with weights") == 2


@pytest.mark.parametrize("bits", [3, 0, "4", True])
def test_other_numbers_of_bits_are_refused(model, bits):
    for flag in ("weight_bits", "lm_head_bits", "kv_bits"):
        with pytest.raises(UserError, match=rf"--{flag.replace('_', '-')} {bits}: give 4, 8 or 16"):
            make(model, **{flag: bits})


LONG = [{"prompt_token_ids": [3 + (7 * i) % 50 for i in range(n)]} for n in (100, 30, 70)]


@pytest.mark.parametrize("how", [{"kv": "disk=100%"}, {"rows": 1}, {"weights": "disk=100%", "batch_tokens": 24}])
def test_packed_kv_gives_the_same_tokens_however_it_is_placed(long_context, how):
    def answers(**how):
        with make(long_context, kv_bits=4, **how) as llm:
            return [out.outputs[0].token_ids for out in llm.generate(LONG, GREEDY)]

    assert answers(**how) == answers()


def test_the_memory_of_packed_kv_is_counted_with_its_open_blocks(long_context):
    def footprint(**how):
        with make(long_context, **how) as llm:
            return llm.blueprint.footprint(), describe(str(long_context), dtype="float32", **how)

    (whole, told), (packed, told_packed) = footprint(), footprint(kv_bits=8)
    assert whole.open_block == told["open_kv_bytes_per_row"] == 0
    assert packed.open_block == told_packed["open_kv_bytes_per_row"] == 64 * whole.kv_block // whole.block_tokens
    assert packed.kept == packed.open_block
    assert told_packed["kv_bytes_per_token"] <= 0.5 * told["kv_bytes_per_token"]


def test_a_plan_packs_kv_and_a_run_does_as_it_says(long_context, tmp_path):
    asked = {"prompt_len": 80, "gen_len": 4, "num_prompts": 40, "dtype": "float32", "cpu_memory": 16 << 30}
    whole, packed = (make_plan(str(long_context), Question(**asked, kv_bits=bits)) for bits in (None, 4))
    assert packed.policy.kv_bits == 4 and packed.fits
    assert packed.memory["cpu"].kv < 0.6 * whole.memory["cpu"].kv
    free = plan_of_free_bits(str(long_context), Question(**asked), {"kv_bits": (8, 4)})
    assert free.predicted.total_tok_s >= packed.predicted.total_tok_s
    assert "KV in" in free.notes[0] and "penstock eval" in free.notes[0]
    both = plan_of_free_bits(str(long_context), Question(**asked), {"weight_bits": (8,), "kv_bits": (8,)})
    assert both.notes[0].count("tok/s with") == 3
    assert both.predicted.total_tok_s >= free.predicted.total_tok_s * 0.99


def test_jobs_know_how_their_kv_is_packed(long_context, tmp_path):
    lines, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines.write_text("".join(json.dumps(prompt) + "\n" for prompt in LONG))
    with make(long_context, kv_bits=4) as llm:
        llm.run_batch(lines, out, GREEDY)
    with make(long_context, kv_bits=8) as llm, pytest.raises(UserError, match=r"kv-int4g64, now float32\+kv-int8g64"):
        llm.run_batch(lines, out, GREEDY)


def test_a_row_whose_keys_are_infinite_ends_with_an_error_of_its_own(long_context, tmp_path):
    broken = AutoModelForCausalLM.from_pretrained(long_context)
    broken.model.embed_tokens.weight.data[60] = torch.inf
    broken.save_pretrained(tmp_path / "broken")
    lines, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts = [LONG[0], {"prompt_token_ids": [4] * 70 + [60] + [4] * 70}]
    lines.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    with make(tmp_path / "broken", kv_bits=4) as llm:
        llm.run_batch(lines, out, GREEDY)
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["error"] is None for answer in sorted(answers, key=lambda a: a["custom_id"])] == [True, False]
