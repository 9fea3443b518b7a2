"""Skip traces from real runs: one prompt on one LLM, watched while it generates."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.encoding import Item, Prompt, job_of
from penstock.engine.skip_recorder import SkipRecorder
from penstock.engine.skip_rule import Selection
from penstock.errors import UserError
from penstock.llm import LLM
from penstock.model import tokenizer
from penstock.outlook import Outlook
from penstock.outputs import RequestOutput
from penstock.sampling import SamplingParams
from penstock.trace.coded import CodedTrace
from penstock.trace.header import TraceHeader
from penstock.trace.writer import TraceWriter


@dataclass(frozen=True, slots=True)
class Recording:
    """A trace and the run that it is of.

    mass_kept: per layer, the share of attention that is not on skipped tokens, the mean over heads and steps. run: the
    run's figures, as ``LLM.last_run`` has them.
    """

    trace: CodedTrace
    output: RequestOutput
    mass_kept: tuple[float, ...]
    run: Mapping[str, Any]


def record(
    llm: LLM,
    prompt: Prompt,
    params: SamplingParams,
    selection: Selection,
    path: Path | None,
    *,
    chat: bool = False,
    prompt_tokens: int | None = None,
) -> Recording:
    """Generate for one prompt and record which cached tokens every decode step could have passed over.

    The tokens are those that ``generate`` draws; n of them make n - 1 steps, since the last is never fed. path: of the
    trace, None keeps it in memory. prompt_tokens: take so many of the prompt's tokens at most, without chat template.
    Raises UserError for what cannot be run, for models that keep no KV or share it between layers, and where nothing
    is left to record.
    """
    layers = sorted(llm.blueprint.anatomy.kv)
    if not layers:
        raise UserError(f"{llm.name} keeps no KV, only state of a fixed size: there is nothing to skip")
    if prompt_tokens is not None:
        prompt, chat = {"prompt_token_ids": _first_tokens(llm, prompt, prompt_tokens)}, False
    item = llm.encoder.item(0, prompt, params, chat)
    if llm.blueprint.kv.packed is not None or "kv_bits" in llm.model.bits.free:
        raise UserError("a trace is recorded from keys as they are: leave --kv-bits out")
    llm.model.settle(job_of([item]))
    if item.sampling.max_tokens < 2:
        raise UserError(f"{item.sampling.max_tokens} token to draw makes no step to record: draw at least 2")
    with TraceWriter(path, _header(llm, item, len(layers), selection)) as writer:
        recorder = SkipRecorder(layers, len(item.ids), selection, writer.append)
        run = llm.run([item], job_of([item]), Outlook(1))
        with recorder.watching(run.engine):
            ((_, output),) = list(run)
        if isinstance(output, UserError):
            raise output
        if not recorder.steps:
            raise UserError("the first token drawn ended the text, so that no step was made: --ignore-eos goes on")
        mass_kept = tuple(round(mass, 6) for mass in recorder.kept_mass)
        return Recording(writer.close(mass_kept=list(mass_kept)), output, mass_kept, run.summary())


def _header(llm: LLM, item: Item, layers: int, selection: Selection) -> TraceHeader:
    kept = {"sinks": selection.sinks, "recent": selection.recent}
    drawn = {"temperature": item.sampling.temperature, "seed": item.sampling.seed}
    rule = str(selection.rule)
    return TraceHeader(len(item.ids), layers, rule, llm.name, hash_of(item.ids), {**kept, **drawn})


def hash_of(ids: Sequence[int]) -> str:
    """SHA-256, in hex, of token ids as 64-bit little-endian integers."""
    return hashlib.sha256(np.array(ids, "<i8").tobytes()).hexdigest()


def _first_tokens(llm: LLM, prompt: Prompt, count: int) -> list[int]:
    """The first tokens of a prompt, which may be longer than the model's context; UserError for a conversation."""
    asked: Mapping[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else prompt
    if "messages" in asked:
        raise UserError(f"--prompt-tokens {count} would cut a conversation in the middle: give its text as a prompt")
    ids = (
        asked["prompt_token_ids"]
        if "prompt_token_ids" in asked
        else tokenizer.encode_prompt(llm.tokenizer, asked["prompt"])
    )
    return list(ids[:count])
