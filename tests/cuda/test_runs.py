"""Runs whose packed weights go through Triton's kernels: pages from slots of a gpu tier, rows in chunks, experts."""

import pytest
from tests.cuda import places
from tests.parity import families

from penstock import LLM, SamplingParams
from penstock.cuda import few, unpacking
from penstock.engine import linear
from penstock.engine.linear import Widening
from penstock.quant.packed import Packed

GREEDY = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
PROMPTS = [{"prompt_token_ids": list(range(5, 26))}, {"prompt_token_ids": [9, 10]}]
HOW = {"dtype": "float32", "page_bytes": 20_000, "unchecked": True, "weight_bits": 4, "lm_head_bits": 8}
BESIDE = {"weights": "gpu=50%,cpu=50%", "kv": "cpu=100%", "attention": "cpu"}
each_family = pytest.mark.parametrize("family", ["llama", "mixtral"])


def tokens(path, device):
    """What a gpu tier, or the CPU alone, generates."""
    with LLM(str(path), device=device, **HOW, **(BESIDE if device != "cpu" else {})) as llm:
        return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY)]


@pytest.mark.skipif(places.DEVICE.type == "cuda", reason="emulated")
@each_family
def test_tokens_are_those_of_the_cpus_kernels(family, tmp_path, monkeypatch):
    """On an emulated gpu, where kernels of the CPU are left out and Triton's interpreter stands for a CUDA device."""
    families.build(family).save_pretrained(tmp_path)
    expected, called = tokens(tmp_path, "emulated"), set()

    def write(self: Packed, target):
        called.add("unpack")
        unpacking.unpack(self.data.reshape(-1, self.data.shape[-1]), self.form, target.view(-1, self.columns))

    multiply = few.multiply_few
    monkeypatch.setattr(few, "multiply_few", lambda *product: called.add("multiply") or multiply(*product))
    monkeypatch.setattr(Packed, "write", write)
    monkeypatch.setattr(Widening, "_kernel", lambda self, x, weight: None)
    monkeypatch.setattr(linear, "works", lambda *asked: True)
    assert tokens(tmp_path, "emulated") == expected
    assert called == {"unpack", "multiply"}


@pytest.mark.gpu
@each_family
def test_tokens_on_cuda_are_those_of_the_cpu(family, tmp_path):
    families.build(family).save_pretrained(tmp_path)
    assert tokens(tmp_path, "cuda") == tokens(tmp_path, "cpu")
