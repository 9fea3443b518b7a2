"""From prompts to what an engine runs: token ids, and how tokens are drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from penstock.engine.build import Blueprint, check_context
from penstock.errors import UserError
from penstock.jobs.errors import Fault
from penstock.jobs.fields import read_sampling
from penstock.jobs.request import FORMS
from penstock.model import tokenizer
from penstock.plan.types import Job, Length
from penstock.sampling import Sampling, SamplingParams, first_said, resolve

Prompt = str | Mapping[str, Any]

_ROW_BYTES = 1024  # objects of a request, its row and its answer; 820 to 870 were counted
_PROMPT_BYTES = 24  # of a token: a pointer in a tuple and one in a list, and its part of hashes of blocks (below 6)
_NEW_BYTES = 40  # a pointer, and a whole number of its own


class TooLong(UserError):
    """A prompt that the model's context does not hold."""


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt, ready to run.

    index: its place in the input. key: with the seed, what its draws depend on. limited: whether more tokens were asked
    for than the model's context holds.
    """

    index: int
    key: str
    prompt: Prompt
    ids: list[int]
    sampling: Sampling
    limited: bool = False

    @property
    def tokens(self) -> int:
        """Its length when it has generated all it may."""
        return len(self.ids) + self.sampling.max_tokens

    def is_cut(self, finish_reason: str, generated: int) -> bool:
        """Whether an answer of so many tokens ended where memory for KV was full."""
        return finish_reason == "length" and generated < self.sampling.max_tokens


def job_of(items: Sequence[Item]) -> Job:
    """What a list of prompts asks for, every row at its longest."""
    totals = [item.tokens for item in items]
    lengths = [Length(len(item.ids), item.sampling.max_tokens, item.ids) for item in items]
    return Job(len(items), -(-sum(totals) // len(totals)), max(totals), max(one.prompt for one in lengths), lengths)


def held_bytes(items: Sequence[Item]) -> int:
    """What it takes to give all of a list to an engine at once, and to keep every answer until the last, at most.

    The items themselves are there already.
    """
    return sum(_ROW_BYTES + _PROMPT_BYTES * len(item.ids) + _NEW_BYTES * item.sampling.max_tokens for item in items)


class Encoder:
    """Makes items of prompts, checked against one model's context and vocabulary.

    UserError where the model's generation_config says what cannot be.
    """

    def __init__(self, blueprint: Blueprint, tokens: Any | None, generation_config: Mapping[str, Any]) -> None:
        self._blueprint, self._tokenizer = blueprint, tokens
        self._generation_config = {name: value for name, value in generation_config.items() if value is not None}
        resolve(None, self._generation_config)  # what of it cannot be used is told now, not once for each prompt

    def item(
        self,
        index: int,
        prompt: Prompt,
        params: SamplingParams,
        chat: bool,
        key: str | None = None,
        defaults: SamplingParams | None = None,
    ) -> Item:
        """A prompt made ready. key: its index where None. defaults: what holds where ``params`` says nothing.

        What the prompt says of itself, as a line of a batch file may, goes before ``params``. Raises UserError for what
        cannot be run, and TooLong for a prompt beyond the model's context.
        """
        name = f"prompt {index + 1}"
        ids = self._encode(prompt, chat, name)
        asked = resolve(_said(prompt, params, name), self._generation_config, defaults)
        if asked.stop and self._tokenizer is None:
            raise UserError(f"{name} has stop texts, and the model no tokenizer to find them with: give stop_token_ids")
        sampling = self._limited(asked, ids)
        return Item(index, str(index) if key is None else key, prompt, ids, sampling, sampling is not asked)

    def _encode(self, prompt: Prompt, chat: bool, name: str) -> list[int]:
        form, given = _given(prompt)
        wanted: Any = str if form == "prompt" else Sequence
        if not isinstance(given, wanted):
            raise UserError(f"{name} is no text, nor a mapping with one of {', '.join(FORMS)}")
        if form == "prompt_token_ids":
            ids = list(given)
            vocabulary = int(self._blueprint.config.vocab_size)
            if not ids or not all(isinstance(i, int) and 0 <= i < vocabulary for i in ids):
                allowed = f"at least one whole number from 0 to {vocabulary - 1:,}"
                raise UserError(f"{name}: prompt_token_ids takes {allowed}")
        elif form == "messages":
            ids = tokenizer.encode_chat(self._tokenizer, given)
        elif chat and tokenizer.has_chat_template(self._tokenizer):
            ids = tokenizer.encode_chat(self._tokenizer, [{"role": "user", "content": given}])
        else:
            ids = tokenizer.encode_prompt(self._tokenizer, given)
        if not ids:
            raise UserError(f"{name} has no tokens")
        try:
            check_context(self._blueprint, len(ids), name)
        except UserError as refusal:
            raise TooLong(str(refusal)) from None
        return ids

    def _limited(self, sampling: Sampling, ids: Sequence[int]) -> Sampling:
        """Sampling whose max_tokens stays within the model's context."""
        context = self._blueprint.context
        if context is None or sampling.max_tokens <= context - len(ids):
            return sampling
        return replace(sampling, max_tokens=context - len(ids))


def _given(prompt: Prompt) -> tuple[str, Any]:
    """The form that a prompt is given in, and what is given; the latter is None where it is not exactly one."""
    asked: Mapping[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else prompt
    forms = [form for form in FORMS if asked.get(form) is not None] if isinstance(asked, Mapping) else []
    return (forms[0], asked[forms[0]]) if len(forms) == 1 else ("", None)


def _said(prompt: Prompt, params: SamplingParams, name: str) -> SamplingParams:
    """What holds for a prompt: its own word, else ``params``. UserError for what cannot be heeded."""
    if isinstance(prompt, str) or len(prompt) == 1:
        return params
    fields = {field: value for field, value in prompt.items() if field != "custom_id"}
    try:
        own, _ = read_sampling(fields, _given(prompt)[0])
    except Fault as fault:
        raise UserError(f"{name}: {fault.reason}") from None
    return first_said(own, params)
