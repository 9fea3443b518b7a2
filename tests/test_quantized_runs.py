"""fp8 and MXFP4 checkpoints from end to end: what is said of them, budgets of the disk, and a config alone."""

import json

import pytest
from tests.model.quantized_files import write_fp8, write_mxfp4
from tests.model.test_stored import MOE, OSS, build

from penstock import LLM, SamplingParams
from penstock.describe import describe
from penstock.plan.question import Question
from penstock.planner import make_plan

GREEDY = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
PROMPTS = [{"prompt_token_ids": [5, 6, 7, 8]}, {"prompt_token_ids": [9, 10]}]
METHODS = {"fp8": (MOE, write_fp8), "mxfp4": (OSS, write_mxfp4)}


@pytest.fixture(scope="module", params=METHODS)
def checkpoint(request, tmp_path_factory):
    config, write = METHODS[request.param]
    path = tmp_path_factory.mktemp("quantized") / request.param
    write(build(config), path)
    return path


def tokens(path, **how):
    with LLM(str(path), **{"dtype": "float32", "page_bytes": 200_000, "unchecked": True, **how}) as llm:
        return [out.outputs[0].token_ids for out in llm.generate(PROMPTS, GREEDY)], llm.blueprint.converted_bytes


def test_without_room_for_a_page_cache_pages_are_rearranged_whenever_they_are_read(checkpoint):
    cached, none_left = tokens(checkpoint, weights="disk=100%")
    uncached, left = tokens(checkpoint, disk_memory=1000)
    assert cached == uncached
    assert none_left == 0 < left


def test_16_bits_are_the_same_weights(checkpoint):
    assert tokens(checkpoint, weight_bits=16)[0] == tokens(checkpoint)[0]


def test_pages_are_as_small_as_the_file(checkpoint):
    facts, wide = (describe(str(checkpoint), weight_bits=bits) for bits in (None, 16))
    assert facts["bytes"] == pytest.approx((checkpoint / "model.safetensors").stat().st_size, rel=0.06)
    assert facts["bytes"] < 0.8 * wide["bytes"]


def test_a_config_alone_weighs_what_its_checkpoint_would(checkpoint, tmp_path):
    written = json.loads((checkpoint / "config.json").read_text())
    if checkpoint.name == "fp8":
        written["quantization_config"]["modules_to_not_convert"] = ["lm_head", "model.layers.*.mlp.gate"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    facts, bare = describe(str(checkpoint)), describe(str(tmp_path), random_weights=True)
    assert (facts["dtype"], facts["pages"]) == (bare["dtype"], bare["pages"])
    assert facts["bytes"] == pytest.approx(bare["bytes"], rel=0.05), "pages that lie as files do have gaps"
    asked = {"prompt_len": 8, "gen_len": 4, "num_prompts": 4, "dtype": "float32", "cpu_memory": 16 << 30}
    plans = [make_plan(str(path), Question(**asked)) for path in (checkpoint, tmp_path)]
    assert plans[0].memory["cpu"].weights == pytest.approx(plans[1].memory["cpu"].weights, rel=0.05)


def test_random_weights_run(checkpoint, tmp_path):
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    on_disk, in_memory = (tokens(tmp_path, random_weights=True, **how)[0] for how in ({"weights": "disk=100%"}, {}))
    assert on_disk == in_memory
