"""Recorded skip sets against those that follow from the weights that transformers tells."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from tests.parity import families
from tests.parity.harness import engine_of, greedy
from transformers import AutoModelForCausalLM, LlamaConfig

from penstock import UserError
from penstock.engine.skip_recorder import SkipRecorder, packed
from penstock.engine.skip_rule import Selection, parse_rule

PROMPT = [5, 17, 40, 8, 22, 61, 9, 33, 12, 70, 3, 14, 90, 41, 6, 27, 55, 18, 77, 2, 64, 31, 49]
COUNT = 12  # tokens drawn; the last of them is never fed, so that there is one step less
RULES = ["top-k:3", "top-k:25%", "top-p:0.5", "threshold:0.06"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The directory and the model of a family, made once."""
    made = {}

    def make(family):
        if family not in made:
            path = tmp_path_factory.mktemp("model")
            model = like_the_demo() if family == "smollm2" else families.build(family)
            model.save_pretrained(path)
            made[family] = path, model
        return made[family]

    return make


def like_the_demo():
    """SmolLM2's proportions: three query heads to a KV head, tied embeddings. Its attention is sharp."""
    torch.manual_seed(0)
    widths = {**families.GQA, "hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = LlamaConfig(**{**widths, "tie_word_embeddings": True})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.2)
    return model


def record(path, text, *, prompt=PROMPT, sinks=1, recent=2, **how):
    """The tokens drawn, the recorder and its skip sets as booleans (steps, layers, all tokens but the last)."""
    steps = []
    with engine_of(path, [len(prompt)], COUNT, **how) as engine:
        recorder = SkipRecorder(
            layers_of(engine), len(prompt), Selection(parse_rule(text), sinks, recent), steps.append
        )
        with recorder.watching(engine):
            row = engine.add("0", prompt, greedy(COUNT))
            finish(engine)
        tokens = engine.sequences[row].generated
    assert recorder.steps == len(steps) == COUNT - 1
    bits = np.zeros((len(steps), len(steps[0]), 64), bool)
    for flags, words in zip(bits, steps, strict=True):
        assert words.dtype == np.uint64 and words.shape[1] == 1
        flags[:] = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")
    return tokens, recorder, bits


def layers_of(engine):
    return sorted(layer for group in engine.kv.groups for layer in group.layers)


def finish(engine):
    while engine.sweep() is not None:
        pass


def weights_of(model, tokens):
    """Per layer (heads, T, T), as transformers computes them."""
    with torch.inference_mode():
        return [w[0].double() for w in model(torch.tensor([tokens]), output_attentions=True).attentions]


def skipped_of(rows, kv_heads, text, position, sinks, recent):
    """The skipped tokens of one step and layer, token by token and head by head. rows: (heads, position + 1)."""
    kind, _, value = text.partition(":")
    group = len(rows) // kv_heads
    needed = set()
    for head in range(kv_heads):
        mine = [row.tolist() for row in rows[head * group : (head + 1) * group]]
        if kind == "top-k":
            seen = [t for t in range(position) if any(row[t] > 0 for row in mine)]
            count = math.ceil(int(value[:-1]) * len(seen) / 100) if value.endswith("%") else int(value)
            needed |= set(sorted(seen, key=lambda t: -max(row[t] for row in mine))[:count])
        for row in mine:
            if kind == "threshold":
                needed |= {t for t in range(position) if row[t] >= float(value)}
            if kind == "top-p":
                mass = 0.0
                for t in sorted(range(position + 1), key=lambda t: -row[t]):
                    if mass >= float(value) * sum(row):
                        break
                    needed.add(t)
                    mass += row[t]
    visible = {t for t in range(position) if any(row[t] > 0 for row in rows)}
    kept = (needed | set(range(sinks)) | set(range(position - recent, position))) & visible
    return set(range(position)) - kept


def check(model, tokens, recorder, bits, text, kv_heads, *, sinks=1, recent=2):
    """The whole trace of PROMPT, and the mass that it keeps."""
    weights = weights_of(model, PROMPT + tokens)
    assert bits.shape[:2] == (COUNT - 1, len(weights))
    lost = np.zeros((COUNT - 1, len(weights)))
    sizes = set()
    for step in range(COUNT - 1):
        position = len(PROMPT) + step
        for layer, rows in enumerate(weights):
            skipped = skipped_of(rows[:, position, : position + 1], kv_heads, text, position, sinks, recent)
            assert set(np.flatnonzero(bits[step, layer])) == skipped, f"step {step}, layer {layer}"
            lost[step, layer] = rows[:, position, sorted(skipped)].sum(-1).mean()
            sizes.add(len(skipped))
    assert recorder.kept_mass == pytest.approx(list(1 - lost.mean(0)), abs=1e-4)
    assert max(sizes) > 3, "a rule that skips nothing tests nothing"


@pytest.mark.parametrize("text", RULES)
@pytest.mark.parametrize(("family", "kv_heads"), [("llama", 2), ("smollm2", 3)])
def test_skip_sets_are_those_of_transformers_weights(checkpoint, family, kv_heads, text):
    path, model = checkpoint(family)
    tokens, recorder, bits = record(path, text)
    check(model, tokens, recorder, bits, text, kv_heads)


@pytest.mark.parametrize("attention", ["cpu", "gpu"])
@pytest.mark.parametrize("kv", ["cpu=100%", "disk=100%"])
def test_keys_are_found_on_every_tier(checkpoint, kv, attention):
    path, model = checkpoint("llama")
    how = {"device": "emulated", "kv": kv, "attention": attention, "block_tokens": 16, "sweep_tokens": 9}
    tokens, recorder, bits = record(path, "top-k:3", **how)
    check(model, tokens, recorder, bits, "top-k:3", 2)


@pytest.mark.parametrize("kv", ["cpu=100%", "disk=100%"])
@pytest.mark.parametrize("tokens_there", [1, 9])
def test_keys_are_found_where_the_cpu_computes_the_first_layers(checkpoint, kv, tokens_there):
    path, model = checkpoint("llama")
    split = {"cpu_layers": 2, "cpu_tokens": tokens_there}
    how = {"device": "emulated", "kv": kv, "block_tokens": 16, "sweep_tokens": 9, **split}
    tokens, recorder, bits = record(path, "top-k:3", **how)
    check(model, tokens, recorder, bits, "top-k:3", 2)


@pytest.mark.parametrize(
    ("family", "kv_heads", "text"),
    [
        ("mistral-window", 2, "top-k:25%"),
        ("gpt_oss-sinks", 2, "top-p:0.5"),
        ("gemma2-softcap", 2, "threshold:0.08"),
        ("deepseek_v3-mla", 4, "top-k:2"),
        ("opt", 4, "top-p:0.3"),
    ],
)
def test_so_they_are_with_windows_sinks_softcap_and_latents(checkpoint, family, kv_heads, text):
    path, model = checkpoint(family)
    tokens, recorder, bits = record(path, text)
    check(model, tokens, recorder, bits, text, kv_heads)


@pytest.mark.parametrize(
    "how",
    [
        {"sweep_tokens": 11, "batch_tokens": 11},  # 23 tokens: the last chunk is a single one, and no decode step
        {"sweep_tokens": 40, "batch_tokens": 4, "weights": "disk"},
        {"kv": "disk"},
        {"device": "emulated", "kv": "gpu=50%,cpu=50%"},
    ],
)
def test_how_the_run_is_cut_and_placed_changes_nothing(checkpoint, how):
    path, _ = checkpoint("mistral-window")
    tokens, recorder, bits = record(path, "top-k:3")
    others, again, same = record(path, "top-k:3", **how)
    assert others == tokens and (same == bits).all()
    assert again.kept_mass == pytest.approx(recorder.kept_mass, abs=1e-5)


def test_a_row_that_is_computed_again_is_recorded_once(checkpoint):
    """As one that grows past the length from which on its rotary frequencies are others."""
    path, model = checkpoint("phi3-longrope")
    prompt = PROMPT[: families.SWITCH - 5]
    tokens, _, bits = record(path, "top-k:3", prompt=prompt)
    weights = weights_of(model, prompt + tokens)
    for position in range(families.SWITCH, len(prompt) + COUNT - 1):
        for layer, rows in enumerate(weights):
            skipped = skipped_of(rows[:, position, : position + 1], 2, "top-k:3", position, 1, 2)
            assert set(np.flatnonzero(bits[position - len(prompt), layer])) == skipped


def test_a_first_step_reads_the_prompt_alone(checkpoint):
    """It feeds the first token drawn, whose own KV is written and not read."""
    *_, bits = record(checkpoint("llama")[0], "top-k:0", sinks=0, recent=0)
    ends = [[int(np.flatnonzero(layer).max()) for layer in step] for step in bits]
    assert ends == [[len(PROMPT) + step - 1] * 3 for step in range(COUNT - 1)]
    assert bits.sum(2).tolist() == [[len(PROMPT) + step] * 3 for step in range(COUNT - 1)]


def test_tokens_are_the_same_and_an_engine_is_left_as_it_was(checkpoint):
    path, _ = checkpoint("llama")
    found, steps = [], []
    with engine_of(path, [len(PROMPT)], COUNT) as engine:
        recorder = SkipRecorder(layers_of(engine), len(PROMPT), Selection(parse_rule("top-k:3")), steps.append)
        for watched in (False, True, False):
            with recorder.watching(engine) if watched else nullcontext():
                row = engine.add(str(watched), PROMPT, greedy(COUNT))
                finish(engine)
            found.append(engine.sequences[row].generated)
    assert found[0] == found[1] == found[2]
    assert len(steps) == COUNT - 1


def test_sets_that_take_more_than_a_word():
    flags = torch.zeros(130, dtype=torch.bool)
    flags[[0, 63, 64, 129]] = True
    assert packed(flags).tolist() == [1 | 1 << 63, 1, 2]


def test_layers_that_share_their_kv_are_refused(checkpoint):
    with pytest.raises(UserError, match="several layers read the KV of layer"):
        record(checkpoint("gemma4-shared-kv")[0], "top-k:3")
