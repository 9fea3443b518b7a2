"""How tokens are drawn: what a request may say, in vLLM's names, and what holds where it says nothing."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any

from penstock.errors import UserError

DEFAULT_MAX_TOKENS = 256
GREEDY_BELOW = 1e-5  # a lower temperature leaves only the best token, but overflows on the way there


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What a request says about sampling; None is not said, and ``resolve`` decides.

    temperature: 0 is greedy. top_p: smallest set of tokens with this much probability. top_k: that many best tokens; 0
    or -1 is all. max_tokens: generated tokens at most. stop: strings that end the text. stop_token_ids: tokens that end
    it besides the model's own. ignore_eos: go on past the model's end tokens.
    Raises UserError for a value of the wrong type or out of range.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | tuple[str, ...] | None = None
    stop_token_ids: list[int] | tuple[int, ...] | None = None
    ignore_eos: bool | None = None

    def __post_init__(self) -> None:
        _check(self.temperature is None or (_real(self.temperature) and self.temperature >= 0), self, "temperature")
        _check(self.top_p is None or (_real(self.top_p) and 0 < self.top_p <= 1), self, "top_p")
        _check(self.top_k is None or (_integer(self.top_k) and self.top_k >= -1), self, "top_k")
        _check(self.seed is None or (_integer(self.seed) and -(2**63) <= self.seed < 2**64), self, "seed")
        _check(self.max_tokens is None or (_integer(self.max_tokens) and self.max_tokens >= 1), self, "max_tokens")
        _check(self.stop is None or all(isinstance(s, str) and s for s in _listed(self.stop)), self, "stop")
        ids = [] if self.stop_token_ids is None else _listed(self.stop_token_ids)
        _check(all(_integer(token) and token >= 0 for token in ids), self, "stop_token_ids")
        _check(self.ignore_eos is None or isinstance(self.ignore_eos, bool), self, "ignore_eos")


_ALLOWED = {
    "temperature": "a number of 0 (greedy) or more",
    "top_p": "a number above 0 and at most 1",
    "top_k": "a whole number of 1 or more, or 0 or -1 for all tokens",
    "seed": "a whole number of at most 64 bits",
    "max_tokens": "a whole number of 1 or more",
    "stop": "a text or a list of texts, none of them empty",
    "stop_token_ids": "a list of token ids of 0 or more",
    "ignore_eos": "true or false",
}


# What a generation_config may ask for besides, with the values that ask for nothing.
_UNHEEDED: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "bad_words_ids": ([],),
        "begin_suppress_tokens": ([],),
        "epsilon_cutoff": (0,),
        "eta_cutoff": (0,),
        "exponential_decay_length_penalty": (),
        "forced_bos_token_id": (),
        "forced_eos_token_id": (),
        "guidance_scale": (1,),
        "min_length": (0,),
        "min_new_tokens": (0,),
        "min_p": (0,),
        "no_repeat_ngram_size": (0,),
        "num_beams": (1,),
        "repetition_penalty": (1,),
        "sequence_bias": ({},),
        "stop_strings": ([],),
        "suppress_tokens": ([],),
        "top_h": (),
        "typical_p": (1,),
    }
)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one request's tokens are drawn, decided.

    top_k: 0 is all tokens. stop: texts that end it. stop_ids: tokens that end it (the model's end tokens among them,
    unless they are ignored).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    max_tokens: int = DEFAULT_MAX_TOKENS
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()

    @property
    def greedy(self) -> bool:
        """Whether the best token is always taken."""
        return self.temperature < GREEDY_BELOW or self.top_k == 1


def resolve(
    params: SamplingParams | None = None,
    generation_config: Mapping[str, Any] | None = None,
    defaults: SamplingParams | None = None,
) -> Sampling:
    """What holds for a request: its own word, else ``defaults`` (flags), else the model's ``generation_config``.

    Greedy unless one of them says otherwise: the request or a flag by a temperature, top_p or top_k, the model by
    ``do_sample``. The model's temperature, top_p and top_k count once tokens are drawn at all. 256 tokens, seed 0, no
    top_p or top_k where nothing says otherwise. ``eos_token_id`` is an id or a list of them.
    """
    config = dict(generation_config or {})
    asked = first_said(params or SamplingParams(), defaults or SamplingParams())
    model = _of_model(config)
    draws = asked.temperature or (
        asked.temperature is None
        and (config.get("do_sample") is True or asked.top_p is not None or asked.top_k is not None)
    )
    said = first_said(asked, model)
    temperature = 1.0 if said.temperature is None else float(said.temperature)
    stop_ids = set(said.stop_token_ids or ())
    if not said.ignore_eos:
        stop_ids |= eos_ids(config)
    return Sampling(
        temperature=temperature if draws else 0.0,
        top_p=float(said.top_p) if draws and said.top_p is not None else 1.0,
        top_k=max(0, int(said.top_k)) if draws and said.top_k is not None else 0,
        seed=int(said.seed or 0),
        max_tokens=int(said.max_tokens or DEFAULT_MAX_TOKENS),
        stop=tuple(_listed(said.stop)) if said.stop is not None else (),
        stop_ids=frozenset(int(token) for token in stop_ids),
    )


def eos_ids(generation_config: Mapping[str, Any]) -> set[int]:
    """The model's end tokens: ``eos_token_id`` is an id, a list of ids, or absent; UserError for anything else."""
    given = generation_config.get("eos_token_id")
    ids = [] if given is None else _listed(given)
    if not all(_integer(token) for token in ids):
        raise UserError(f"the model's generation_config has eos_token_id {given!r}: give a token id or a list")
    return {int(token) for token in ids}


def unheeded(generation_config: Mapping[str, Any]) -> list[str]:
    """What a model's ``generation_config`` asks for besides, which would change its answers and is not done here."""
    said = {name: generation_config.get(name) for name in _UNHEEDED}
    return [
        name if isinstance(value, list | dict) else f"{name} {value}"
        for name, value in said.items()
        if value is not None and value not in _UNHEEDED[name]
    ]


def first_said(*several: SamplingParams) -> SamplingParams:
    """Each setting from the first that says it."""
    return SamplingParams(
        **{
            each.name: next((said for one in several if (said := getattr(one, each.name)) is not None), None)
            for each in fields(SamplingParams)
        }
    )


def _of_model(config: Mapping[str, Any]) -> SamplingParams:
    try:
        return SamplingParams(
            temperature=config.get("temperature"),
            top_p=config.get("top_p"),
            top_k=config.get("top_k"),
            max_tokens=config.get("max_new_tokens"),
        )
    except UserError as error:
        raise UserError(f"the model's generation_config cannot be used: {error}") from None


def _listed(given: Any) -> list[Any]:
    """A list of one or several; something else stands for itself, to be refused by what is checked of each."""
    return list(given) if isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping) else [given]


def _real(given: object) -> bool:
    return isinstance(given, Real) and not isinstance(given, bool) and math.isfinite(given)


def _integer(given: object) -> bool:
    return isinstance(given, Integral) and not isinstance(given, bool)


def _check(right: bool, params: SamplingParams, name: str) -> None:
    if not right:
        raise UserError(f"{name} is {getattr(params, name)!r}: give {_ALLOWED[name]}")
