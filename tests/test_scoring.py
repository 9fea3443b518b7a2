"""Scores through the engine: the losses that transformers computes, whatever the placement."""

import numpy as np
import pytest
import torch
from tests.model.test_tokenizer import TEMPLATE, byte_tokenizer
from tests.parity import families
from transformers import AutoModelForCausalLM, LlamaConfig

from penstock import LLM, UserError
from penstock.scoring import compare, score, windows_of

TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune must want a wife. " * 3
)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    path = tmp_path_factory.mktemp("scored")
    widths = {**families.GQA, "vocab_size": 260}
    model = AutoModelForCausalLM.from_config(LlamaConfig(max_position_embeddings=128, **widths))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.08)
    model.save_pretrained(path)
    byte_tokenizer(TEMPLATE).save_pretrained(path)
    return path


def make(path, **how):
    return LLM(str(path), **{"dtype": "float32", "page_bytes": 20_000, "unchecked": True, **how})


@pytest.mark.parametrize("how", [{}, {"weights": "disk=100%", "rows": 2, "sweep_tokens": 24, "batch_tokens": 10}])
def test_losses_are_those_of_transformers(spoken, how):
    model = AutoModelForCausalLM.from_pretrained(spoken, dtype=torch.float32)
    with make(spoken, **how) as llm:
        windows = windows_of(llm, TEXT, 200, 40)
        assert [len(window) for window in windows] == [40] * 5
        found = score(llm, windows)
    lost, best = [], []
    with torch.no_grad():
        for ids in torch.tensor(windows):
            logits = model(ids[None]).logits[0, :-1]
            lost.append(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none"))
            best.append(logits.argmax(-1))
    np.testing.assert_allclose(found.lost, torch.cat(lost).numpy(), rtol=1e-3, atol=1e-4)
    assert (found.best == torch.cat(best).numpy()).mean() > 0.99
    assert found.perplexity == pytest.approx(float(torch.cat(lost).double().mean().exp()), rel=1e-4)


def test_packed_beside_whole(spoken):
    how = {
        "dtype": "float32",
        "weight_bits": 4,
        "lm_head_bits": None,
        "kv_bits": None,
        "plain": True,
        "unchecked": True,
    }
    whole, fitted, plain = compare(str(spoken), TEXT, 120, 60, **how)
    assert whole["ratio"] == 1 and whole["agreement"] == 1
    assert fitted["name"] == "float32+int4g64" and plain["name"] == "float32+int4g64-plain"
    assert fitted["bytes"] == plain["bytes"] < whole["bytes"]
    assert 0 < fitted["agreement"] <= 1 and fitted["ratio"] != 1


def test_texts_that_are_too_short_and_windows_too_long(spoken):
    with make(spoken) as llm:
        with pytest.raises(UserError, match=r"the text has 3 tokens, fewer than the 40 to score: give --tokens 3"):
            windows_of(llm, "ab", 40, 40)
        with pytest.raises(UserError, match="--window 128: the model's context holds 128 tokens"):
            windows_of(llm, TEXT, 200, 128)


def test_packed_kv_beside_whole(spoken):
    asked = {"weight_bits": None, "lm_head_bits": None, "kv_bits": 4, "plain": True}
    whole, packed = compare(str(spoken), TEXT, 240, 120, **asked, dtype="float32", unchecked=True)
    assert packed["name"] == "float32+kv-int4g64" and packed["bytes"] == whole["bytes"]
    assert abs(packed["ratio"] - 1) > 1e-4
    _, alike = compare(str(spoken), TEXT, 240, 60, **asked, dtype="float32", unchecked=True)
    assert alike["ratio"] == pytest.approx(1, abs=1e-6)  # no window fills a block
