"""How well a model predicts a text, token by token, through the engine itself: what packing costs in quality."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from penstock.bits import Bits
from penstock.encoding import job_of
from penstock.errors import UserError
from penstock.llm import LLM
from penstock.model import tokenizer
from penstock.model.packing import Packing, packing_of
from penstock.outlook import Outlook
from penstock.sampling import SamplingParams

_CALL_TOKENS = 256  # whose logits exist together
_CHUNK_TOKENS = 64  # of these, whose logits become float32 at a time


@dataclass(frozen=True, slots=True)
class Scores:
    """A model on a text. lost: nats per token that is predicted, (tokens,). best: the tokens that it thinks likeliest.

    nbytes: of weights, as they are stored. seconds: of the run.
    """

    lost: npt.NDArray[np.float64]
    best: npt.NDArray[np.int64]
    nbytes: int
    seconds: float

    @property
    def perplexity(self) -> float:
        """e to the mean loss."""
        return math.exp(float(self.lost.mean()))

    def agreement(self, other: "Scores") -> float:
        """Part of the tokens where both think the same token likeliest."""
        return float((self.best == other.best).mean())


def windows_of(llm: LLM, text: str, tokens: int, window: int) -> list[list[int]]:
    """The first ``tokens`` tokens of a text in windows, each of which is read by itself and begins anew.

    Raises UserError where the model has no tokenizer, the text is shorter, or a window exceeds the context.
    """
    if llm.tokenizer is None:
        raise UserError(f"{llm.name} has no tokenizer, and a text cannot be scored without one")
    context = llm.blueprint.context
    if context is not None and window >= context:
        raise UserError(f"--window {window:,}: the model's context holds {context:,} tokens, one of them to generate")
    ids = tokenizer.encode_prompt(llm.tokenizer, text)
    if len(ids) < tokens:
        raise UserError(
            f"the text has {len(ids):,} tokens, fewer than the {tokens:,} to score: give --tokens {len(ids)}"
        )
    return [ids[at : at + window] for at in range(0, tokens - window + 1, window)]


def score(llm: LLM, windows: Sequence[Sequence[int]]) -> Scores:
    """Every token of each window but its first, predicted from those before it.

    Raises UserError where a window cannot be run, or its logits are not finite.
    """
    once = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    items = [llm.encoder.item(i, {"prompt_token_ids": list(ids)}, once, False) for i, ids in enumerate(windows)]
    run = llm.run(items, replace(job_of(items), scored=True), Outlook(len(items)))
    engine, places = run.engine, {item.key: item.index for item in items}
    losts = [np.full(len(ids), np.nan) for ids in windows]
    bests = [np.full(len(ids), -1, np.int64) for ids in windows]

    def take(row: int, first: int, logits: torch.Tensor) -> None:
        """Logits (tokens, vocabulary) of a window's tokens from ``first`` on: each predicts the token after it."""
        window = places[engine.sequences[row].request.key]
        ids = torch.tensor(windows[window][first + 1 : first + 1 + len(logits)], device=logits.device)
        for at in range(0, len(ids), _CHUNK_TOKENS):
            wide = logits[at : at + _CHUNK_TOKENS][: len(ids) - at].float()
            lost = torch.nn.functional.cross_entropy(wide, ids[at : at + len(wide)], reduction="none")
            place = slice(first + 1 + at, first + 1 + at + len(wide))
            losts[window][place] = lost.double().cpu().numpy()
            bests[window][place] = wide.argmax(-1).cpu().numpy()

    engine.score = take
    try:
        for _, output in run:
            if isinstance(output, UserError):
                raise output
    finally:
        engine.score = None
    # what a window took over from another that begins alike was not computed again, and is told of that one
    known = np.concatenate(losts)
    counted = ~np.isnan(known)
    weights = sum(page.nbytes for page in llm.blueprint.layout.pages)
    return Scores(known[counted], np.concatenate(bests)[counted], weights, float(run.summary()["seconds"]))


def compare(
    model: str,
    text: str,
    tokens: int,
    window: int,
    *,
    weight_bits: int | None,
    lm_head_bits: int | None,
    kv_bits: int | None,
    plain: bool,
    dtype: str,
    **how: Any,
) -> list[dict[str, Any]]:
    """A model as it is on a text, and packed as asked; ``plain``: with plain rounding too. A row of figures each.

    Of each: ``name``, ``bytes`` of weights, ``perplexity``, ``seconds``, and beside the first ``ratio`` of perplexities
    and ``agreement`` on the likeliest token. how: keywords of LLM. Raises UserError as LLM and ``score`` do.
    """
    packing = packing_of(Bits(weight_bits, lm_head_bits, kv_bits)) or Packing()
    packings = [Packing()]
    if packing.name:
        packings += [packing] + [packing.rounded_plainly()] * (plain and packing.rounded_plainly() != packing)
    scored: list[tuple[str, Scores]] = []
    for each in packings:
        asked = f"{dtype}+{each.name}" if each.name else dtype
        with LLM(model, dtype=asked, batch_tokens=_CALL_TOKENS, **how) as llm:
            found = score(llm, windows_of(llm, text, tokens, window))
            scored.append((llm.blueprint.precision.name, found))
    (_, first), *_ = scored
    return [
        {
            "name": name,
            "bytes": found.nbytes,
            "perplexity": found.perplexity,
            "ratio": found.perplexity / first.perplexity,
            "agreement": found.agreement(first),
            "seconds": found.seconds,
        }
        for name, found in scored
    ]
