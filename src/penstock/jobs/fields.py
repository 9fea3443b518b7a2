"""What a request may say besides its prompt: sampling, fields that change nothing, and those that are refused."""

import json
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from penstock.errors import UserError
from penstock.jobs.errors import Fault
from penstock.sampling import SamplingParams

SAMPLING = frozenset({"temperature", "top_p", "top_k", "max_tokens", "seed", "stop", "stop_token_ids", "ignore_eos"})
LARGEST = 2**31 - 1  # of a token id and of a number of tokens
_NOTHING_SAID = SamplingParams()

HARMLESS = frozenset(
    {
        "metadata",
        "model",
        "parallel_tool_calls",  # without tools, which are refused
        "prompt_cache_key",
        "request_id",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)

# What cannot change an answer as long as it has one of these values; null is always one.
NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "add_generation_prompt": (True,),
        "allowed_token_ids": (),
        "audio": (),
        "bad_words": ([],),
        "best_of": (1,),
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "continue_final_message": (False,),
        "documents": ([],),
        "echo": (False,),
        "frequency_penalty": (0,),
        "function_call": ("none",),
        "functions": ([],),
        "include_stop_str_in_output": (False,),
        "length_penalty": (1,),
        "logit_bias": ({},),
        "logprobs": (False,),
        "min_p": (0,),
        "min_tokens": (0,),
        "modalities": (["text"],),
        "n": (1,),
        "prediction": (),
        "presence_penalty": (0,),
        "prompt_logprobs": (),
        "reasoning_effort": (),
        "repetition_penalty": (1,),
        "response_format": ({"type": "text"},),
        "skip_special_tokens": (True,),
        "stream": (False,),
        "stream_options": (),
        "structured_outputs": (),
        "suffix": ("",),
        "tool_choice": ("none",),
        "tools": ([],),
        "top_logprobs": (0,),
        "truncate_prompt_tokens": (),
        "use_beam_search": (False,),
        "verbosity": (),
        "web_search_options": (),
    }
)


def read_sampling(body: Mapping[str, Any], prompt_field: str) -> tuple[SamplingParams, dict[str, Any]]:
    """What a body says about sampling, and the same in one spelling, to be hashed.

    Every field is looked at: Fault names the first that would change the answer and is not supported, is unknown, or
    has a value that cannot be.
    """
    said: dict[str, Any] = {}
    for name, value in body.items():
        if name == prompt_field or name in HARMLESS or value is None:
            continue
        if name in SAMPLING:
            said[name] = value
        elif name != "max_completion_tokens":
            _check_neutral(name, value)
    tokens = body.get("max_completion_tokens")
    if tokens is not None:
        if "max_tokens" in said:
            raise Fault("invalid_request", "max_tokens and max_completion_tokens are both given: leave one of them out")
        said["max_tokens"] = tokens
    if not said:
        return _NOTHING_SAID, said
    return _checked(said)


def _check_neutral(name: str, value: Any) -> None:
    if name not in NEUTRAL:
        raise Fault("unsupported", f"{_quoted(name)} is not a field that is known: leave it out, or put it in metadata")
    allowed = NEUTRAL[name]
    # true is not 1 here, though Python has it so
    if any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
        return
    telling = ", ".join(json.dumps(one) for one in allowed if one or one is False or one == 0)
    raise Fault("unsupported", f"{name} is not supported{f' except as {telling}' if telling else ''}: leave it out")


def _checked(said: dict[str, Any]) -> tuple[SamplingParams, dict[str, Any]]:
    for name, value in said.items():
        if name == "stop_token_ids":
            check_token_ids(name, value)
        elif isinstance(value, dict | list) and not (name == "stop" and _all_texts(value)):
            raise Fault("invalid_request", f"{name} is {kind_of(value)}{' of others than texts' * (name == 'stop')}")
        elif isinstance(value, int) and abs(value) >= 2**64:  # too large for arithmetic, or even to be told
            raise Fault("invalid_request", f"{name} is a number beyond 64 bits")
    try:
        params = _params(**{name: tuple(value) if isinstance(value, list) else value for name, value in said.items()})
    except UserError as error:
        raise Fault("invalid_request", str(error)) from None
    for name in ("max_tokens", "top_k"):
        if said.get(name, 0) > LARGEST:
            raise Fault("invalid_request", f"{name} is {said[name]:,}: at most {LARGEST:,} can be meant")
    spelled: dict[str, Any] = dict(said)
    for name in ("temperature", "top_p"):
        if name in said:
            spelled[name] = float(said[name])
    if isinstance(said.get("stop"), str):
        spelled["stop"] = [said["stop"]]
    return params, spelled


@lru_cache(maxsize=256, typed=True)  # most lines of a job say the same, and checking it takes longer than reading it
def _params(**said: Any) -> SamplingParams:
    return SamplingParams(**said)


def check_token_ids(name: str, value: Any) -> None:
    """Raise Fault where a field is not a list of token ids; it may be empty."""
    if not isinstance(value, list):
        raise Fault("invalid_request", f"{name} is {kind_of(value)}, not a list of token ids")
    for place, token in enumerate(value):
        if type(token) is not int or not 0 <= token <= LARGEST:
            raise Fault("invalid_request", f"{name}: entry {place} is no token id, a whole number from 0 up")


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    if isinstance(value, list | str) and not value:
        return "an empty list" if isinstance(value, list) else "an empty text"
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _all_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _quoted(name: str) -> str:
    return name if name.isidentifier() and len(name) <= 60 else json.dumps(name[:60])
