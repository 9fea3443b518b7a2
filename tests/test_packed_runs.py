"""``--weight-bits`` from end to end: page cache, budgets, jobs that go on, plans, and mistakes."""

import json

import pytest
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
    asked = {"prompt_len": 8, "gen_len": 4, "num_prompts": 4, "dtype": "float32", "cpu_memory": 2 << 30}
    whole, packed = (make_plan(str(model), Question(**asked, weight_bits=bits)) for bits in (None, 4))
    assert packed.policy.weight_bits == 4 and packed.fits
    assert packed.memory["cpu"].weights < 0.5 * whole.memory["cpu"].weights
    assert describe(str(model), dtype="float32")["bytes"] > 0


def test_bits_that_are_free_are_chosen_for_speed(model):
    asked = {"prompt_len": 8, "gen_len": 4, "num_prompts": 4, "dtype": "float32", "cpu_memory": 2 << 30}
    speeds = {
        bits: make_plan(str(model), Question(**asked, weight_bits=bits)).predicted.total_tok_s for bits in (None, 8, 4)
    }
    best = plan_of_free_bits(str(model), Question(**asked), (8, 4))
    assert best.predicted.total_tok_s == pytest.approx(max(speeds.values()))
    assert speeds[best.policy.weight_bits] == max(speeds.values())
    assert best.notes[0].count("tok/s with weights") == 2


@pytest.mark.parametrize("bits", [3, 0, "4", True])
def test_other_numbers_of_bits_are_refused(model, bits):
    for flag in ("weight_bits", "lm_head_bits"):
        with pytest.raises(UserError, match=rf"--{flag.replace('_', '-')} {bits}: give 4, 8 or 16"):
            make(model, **{flag: bits})
