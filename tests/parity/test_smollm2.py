"""A real model with its weights from a GGUF file: 32 prompts, half of the pages streamed, against transformers."""

import copy
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.harness import Trail, engine_of, greedy
from tests.parity.reference import Answer, generate
from transformers import AutoModelForCausalLM

from penstock.engine import engine as engine_module
from penstock.generation import Run
from penstock.llm import LLM
from penstock.model import gguf, source
from penstock.sampling import SamplingParams

pytestmark = pytest.mark.xdist_group("smollm2")  # one worker: the model is large

_CHANCE = 2.0  # standard deviations: which near-ties bf16 flips is chance
NEW_TOKENS = int(os.environ.get("PENSTOCK_PARITY_TOKENS", "16"))  # more of them make the shares of bf16 firmer
PROMPTS = (
    "The capital of France is",
    "Water boils at",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village by the sea,",
    "The three primary colours are",
    "E = mc^2 means that",
    "To make a good cup of tea, first",
    "1, 1, 2, 3, 5, 8,",
    "SELECT name FROM users WHERE",
    "The mitochondria is",
    "Dear Sir or Madam,\n\nI am writing to complain about",
    "Q: How many legs does a spider have?\nA:",
    "In 1969, Neil Armstrong",
    "La capitale de l'Espagne est",
    "Roses are red, violets are",
    "The derivative of x squared is",
    "Photosynthesis is the process by which",
    "import numpy as np\n\nx =",
    "The best thing about rainy days is",
    "Breaking news: scientists have discovered",
    "Shakespeare wrote",
    "A haiku about winter:\n",
    "The opposite of hot is",
    "<html>\n<head>\n<title>",
    "My favourite book is about a detective who, after thirty years of solving other people's mysteries, is asked to "
    "explain his own disappearance. The first chapter opens on a cold morning in Edinburgh, where",
    "Ingredients: 200 g flour, 100 g butter, 2 eggs. Method:",
    "The president of the company announced on Monday that",
    "If all cats are animals and Tom is a cat, then",
    "Die Hauptstadt von Deutschland ist",
    "In the beginning",
    "Monday, Tuesday, Wednesday,",
    "The moon",
)


@pytest.fixture(scope="module")
def reference() -> Any:
    """transformers' own model, float32, with the values of the GGUF file."""
    found = source.resolve("demo")
    model = AutoModelForCausalLM.from_config(found.config, dtype=torch.float32, attn_implementation="eager").eval()
    parameters = gguf.plan_parameters(model, gguf.read_header(found.path))
    model.load_state_dict({name: parameter.load().float() for name, parameter in parameters.items()})
    return model


@torch.inference_mode()
def forced(model: Any, prompt: list[int], tokens: list[int]) -> Answer:
    """What the model says after every prefix of prompt and tokens: ``generate``'s answer as long as they agree."""
    logits = model(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :].float()
    return Answer(prompt, logits.argmax(-1).tolist(), logits)


@pytest.fixture(scope="module")
def ran() -> tuple[list[Any], Trail]:
    """Penstock's answers to all prompts, more of them than there are rows, with half of the pages on disk."""
    trail = Trail()

    class Watched(LLM):
        def run(self, *args: Any) -> Run:
            run = super().run(*args)
            trail.watch(run.engine)
            return run

    how = {"weights": "cpu=50%,disk=50%", "rows": 24, "sweep_tokens": 256, "batch_tokens": 96}
    with Watched("demo", dtype="float32", **how) as model:
        outputs = model.generate(PROMPTS, SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True))
        assert model.last_run["peak_bytes"]["disk"] >= model.blueprint.cached_bytes > 0  # the page cache counts
    return outputs, trail


def test_logits_and_tokens_of_32_prompts(reference, ran, compare):
    outputs, trail = ran
    assert len(outputs) == 32 and trail.rows == 24 and trail.micro_batches > 1
    given = [(out.prompt_token_ids, out.outputs[0].token_ids) for out in outputs]
    answers = [forced(reference, prompt, tokens) for prompt, tokens in given]
    compare(answers, [tokens for _, tokens in given], trail.logits)


@pytest.mark.parametrize("index", [0, 7])
def test_tokens_of_generate(reference, ran, compare, index):
    """The same through ``generate`` itself, which is slow."""
    outputs, trail = ran
    answer = generate(reference, outputs[index].prompt_token_ids, NEW_TOKENS)
    compare([answer], [outputs[index].outputs[0].token_ids], {0: trail.logits[index]})


def test_the_capital_of_france(ran):
    assert "Paris" in ran[0][0].outputs[0].text


def test_bf16_rounds_no_worse_than_transformers(reference, ran, tmp_path, monkeypatch, record_property):
    """Under teacher forcing, with float32's own tokens as the truth: bf16 flips near-ties in any batch shape.

    How often ours, and transformers' with many rows, agree with transformers' one row at a time is told beside it.
    """
    given = [(out.prompt_token_ids, out.outputs[0].token_ids) for out in ran[0] if len(out.prompt_token_ids) < 20][:24]
    truth = [list(tokens) for _, tokens in given]
    model = copy.deepcopy(reference).bfloat16()
    model.set_attn_implementation("sdpa")  # what transformers takes by itself
    model.save_pretrained(tmp_path)
    alone = [forced(model, prompt, tokens).tokens for prompt, tokens in given]
    many = _best_of_many(model, given)
    ours = _our_best(tmp_path, given, monkeypatch)
    found = {"ours": ours, "transformers alone": alone, "transformers in a batch": many}
    with_truth = ", ".join(f"{who} {_agreement(tokens, truth):.1%}" for who, tokens in found.items())
    with_alone = f"ours {_agreement(ours, alone):.1%}, its own batch {_agreement(many, alone):.1%}"
    record_property("agreement", f"bf16 against float32: {with_truth}; against transformers alone: {with_alone}")
    assert min(_lost(ours, alone, truth), _lost(ours, many, truth)) <= _CHANCE


@torch.inference_mode()
def _best_of_many(model: Any, given: Sequence[tuple[list[int], list[int]]]) -> list[list[int]]:
    """transformers' best tokens with all rows in one call, padded behind."""
    width = max(len(prompt) + len(tokens) - 1 for prompt, tokens in given)
    rows = [prompt + tokens[:-1] for prompt, tokens in given]
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    best = model(ids, attention_mask=mask).logits.argmax(-1).tolist()
    return [row[len(prompt) - 1 :][: len(tokens)] for row, (prompt, tokens) in zip(best, given, strict=True)]


def _our_best(
    path: Path, given: Sequence[tuple[list[int], list[int]]], monkeypatch: pytest.MonkeyPatch
) -> list[list[int]]:
    """Penstock's best tokens while it is made to go on with the given ones."""

    def force(logits: torch.Tensor, draws: Sequence[Any]) -> torch.Tensor:
        known = [(*given[int(draw.key)], draw.position) for draw in draws]
        return torch.tensor([tokens[position - len(prompt)] for prompt, tokens, position in known])

    monkeypatch.setattr(engine_module, "sample", force)
    trail = Trail()
    how = {"dtype": "bfloat16", "page_bytes": 64 << 20, "weights": "cpu=50%,disk=50%", "batch_tokens": 128}
    with engine_of(path, [len(prompt) for prompt, _ in given], NEW_TOKENS, **how) as engine:
        trail.watch(engine)
        for index, (prompt, _) in enumerate(given):
            engine.add(str(index), prompt, greedy(NEW_TOKENS))
        while engine.sweep() is not None:
            pass
    return [[int(trail.logits[row][at].argmax()) for at in sorted(trail.logits[row])] for row in range(len(given))]


def _lost(ours: Sequence[list[int]], theirs: Sequence[list[int]], truth: Sequence[list[int]]) -> float:
    """How many standard deviations of chance (McNemar's test) more tokens are right of theirs alone than of ours."""
    tokens = [each for rows in zip(ours, theirs, truth, strict=True) for each in zip(*rows, strict=True)]
    worse = sum(mine != right == other for mine, other, right in tokens)
    better = sum(mine == right != other for mine, other, right in tokens)
    return (worse - better) / max(1.0, math.sqrt(worse + better))


def _agreement(ones: Sequence[list[int]], others: Sequence[list[int]]) -> float:
    pairs = [pair for one, other in zip(ones, others, strict=True) for pair in zip(one, other, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)
