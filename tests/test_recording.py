"""A recorded trace as a file: whose it is, how long, and what it says of itself."""

import hashlib

import numpy as np
import pytest
from tests.model.test_tokenizer import TEMPLATE, byte_tokenizer
from tests.parity import families

from penstock import LLM, SamplingParams, UserError
from penstock.engine.skip_rule import Selection, Threshold, TopK
from penstock.recording import hash_of, record
from penstock.trace.coded import CodedTrace

TEXT = "Beautiful is better than ugly. Explicit is better than implicit. Simple is better than complex. " * 2
GREEDY = SamplingParams(max_tokens=9, temperature=0, ignore_eos=True)
NOTHING = Selection(TopK(tokens=0), sinks=4, recent=16)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """A tiny random model of two layers that reads bytes."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    path = tmp_path_factory.mktemp("spoken")
    widths = {**families.GQA, "vocab_size": 260, "num_hidden_layers": 2}
    AutoModelForCausalLM.from_config(LlamaConfig(max_position_embeddings=128, **widths)).save_pretrained(path)
    byte_tokenizer(TEMPLATE).save_pretrained(path)
    with LLM(str(path), dtype="float32", unchecked=True) as made:
        yield made


def sets_of(trace):
    """(steps, layers, tokens) booleans."""
    ((_, words),) = trace.windows(trace.shape.steps)
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little").astype(bool)


def test_a_trace_is_written_and_read_back(llm, tmp_path):
    """Its tokens outgrow a word of 64 on the way."""
    path = tmp_path / "run.skip"
    found = record(llm, TEXT, GREEDY, NOTHING, path, prompt_tokens=60)
    trace = CodedTrace.open(path)
    assert (trace.shape.prefill_tokens, trace.shape.steps, trace.shape.layers) == (60, 8, 2)
    assert found.output.prompt_token_ids == llm.generate(TEXT[:59], GREEDY)[0].prompt_token_ids  # and BOS
    assert trace.header.rule == "top-k:0" and trace.header.model == llm.name
    assert trace.header.prompt_hash == hash_of(found.output.prompt_token_ids)
    assert trace.header.parameters == {
        "sinks": 4,
        "recent": 16,
        "temperature": 0.0,
        "seed": 0,
        "mass_kept": list(found.mass_kept),
    }
    for step, layers in enumerate(sets_of(trace)):
        assert all(np.flatnonzero(skipped).tolist() == list(range(4, 60 + step - 16)) for skipped in layers)


def test_tokens_are_those_of_generate(llm):
    params = SamplingParams(max_tokens=12, temperature=0.9, seed=3, ignore_eos=True)
    found = record(llm, "Now is better", params, NOTHING, None)
    assert found.output.outputs == llm.generate("Now is better", params)[0].outputs
    assert found.trace.shape.steps == found.run["tokens_out"] - 1 == 11


def test_what_is_not_skipped_keeps_all_attention(llm):
    found = record(llm, TEXT[:40], GREEDY, Selection(Threshold(0.0)), None)
    assert found.trace.realised_skip == 0 and found.mass_kept == (1.0, 1.0)
    found = record(llm, TEXT[:40], GREEDY, NOTHING, None)
    assert 0.3 < found.trace.realised_skip < 0.7 and all(0.2 < mass < 0.9 for mass in found.mass_kept)


def test_a_text_may_be_longer_than_the_context_where_it_is_cut(llm):
    with pytest.raises(UserError, match="context holds 128"):
        record(llm, TEXT, GREEDY, NOTHING, None)
    assert record(llm, TEXT, GREEDY, NOTHING, None, prompt_tokens=100).trace.shape.prefill_tokens == 100
    found = record(llm, {"prompt_token_ids": [5, 6, 7, 8]}, GREEDY, NOTHING, None, prompt_tokens=3)
    assert found.output.prompt_token_ids == [5, 6, 7]


def test_an_end_of_text_ends_the_trace(llm):
    first = llm.generate("So", GREEDY)[0].outputs[0].token_ids
    ending = SamplingParams(max_tokens=9, temperature=0, ignore_eos=True, stop_token_ids=[first[0]])
    with pytest.raises(UserError, match="--ignore-eos"):
        record(llm, "So", ending, NOTHING, None)


def test_what_leaves_nothing_to_record_is_refused(llm, tmp_path):
    with pytest.raises(UserError, match="draw at least 2"):
        record(llm, "So", SamplingParams(max_tokens=1), NOTHING, tmp_path / "run.skip")
    with pytest.raises(UserError, match="cut a conversation"):
        record(llm, {"messages": [{"role": "user", "content": "So"}]}, GREEDY, NOTHING, None, prompt_tokens=5)
    with pytest.raises(UserError, match="cannot be written"):
        record(llm, "So", GREEDY, NOTHING, tmp_path / "missing" / "run.skip")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_leaves_no_file_and_a_usable_llm(llm, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Selection, "read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        record(llm, "So it goes", GREEDY, NOTHING, tmp_path / "run.skip")
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())
    assert record(llm, "So it goes", GREEDY, NOTHING, None).trace.shape.steps == 8


def test_a_model_without_kv_is_refused(tmp_path):
    from transformers import AutoModelForCausalLM, MambaConfig

    config = MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, vocab_size=100)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with LLM(str(tmp_path), dtype="float32", unchecked=True) as mamba, pytest.raises(UserError, match="keeps no KV"):
        record(mamba, {"prompt_token_ids": [5, 6, 7]}, GREEDY, NOTHING, None)


def test_the_hash_is_of_the_tokens():
    assert hash_of([1, 258]) == hashlib.sha256(b"\1" + b"\0" * 7 + b"\2\1" + b"\0" * 6).hexdigest()
