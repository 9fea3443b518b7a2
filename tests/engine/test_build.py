"""One skeleton serves engine after engine, as jobs become larger."""

import pytest
from tests.parity import families
from tests.parity.reference import generate

from penstock.engine.build import blueprint
from penstock.llm import LLM
from penstock.model import precision, source
from penstock.sampling import SamplingParams

PROMPTS = ([5, 17, 40], [70, 3, 14, 61, 9, 33, 12, 8, 22], list(range(30, 60)))
TOKENS = 6


@pytest.mark.parametrize("family", ["llama", "llama-dynamic-rope", "phi3-longrope", "mixtral"])
def test_a_larger_job_after_a_smaller_one(family, tmp_path):
    model = families.build(family)
    model.save_pretrained(tmp_path)
    greedy = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True)
    with LLM(str(tmp_path), dtype="float32", weights="disk", page_bytes=8000, unchecked=True) as llm:
        found = [llm.generate({"prompt_token_ids": prompt}, greedy)[0] for prompt in PROMPTS]
    assert [out.outputs[0].token_ids for out in found] == [generate(model, p, TOKENS).tokens for p in PROMPTS]


def test_what_long_spans_keep_beside_packed_kv_counts_in_a_call(tmp_path):
    families.build("llama").save_pretrained(tmp_path)
    found = source.resolve(str(tmp_path))
    plain, packed = (
        blueprint(found, precision.choose(dtype, None, "cpu", False)).footprint()
        for dtype in ("float32", "float32+kv-int4g32")
    )
    wide = 2 * (16 + 16) * 4  # keys and values of a token and layer: two heads of 16 numbers
    assert packed.call_bytes - plain.call_bytes == 3 * wide  # of two layers, and a copy
    assert (plain.query_bytes, plain.answer_bytes) == (4 * 16 * 4, 4 * 17 * 4)
