"""Results of generation, shaped as vLLM's."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """What was generated for a prompt. finish_reason: ``stop`` (an end token or stop text was met) or ``length``."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A prompt, its token ids and its completions (one). prompt is None where token ids were given."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
