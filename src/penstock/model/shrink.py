"""A tiny config with the ways of a large one: every flag and layer kind is kept, widths and lengths are divided.

Nothing is known of families: fields are told apart by their names, and what was guessed wrong shows when it is tried.
"""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import gcd
from typing import Any

from transformers import PreTrainedConfig

from penstock.errors import UserError, first_line

VOCABULARY = 128
LONGEST, SHORTEST = 64, 8  # what the largest and the smallest length become
_EXPERTS, _CHOSEN = 8, 2
_OVERRIDES = "per_layer_overrides"
_LEAST_HEAD, _LEAST_WIDTH = 8, 16

_VOCABULARY = re.compile(r"vocab(ulary)?_size")
_TOKEN = re.compile(r"token_ids?$|token_index$")
_LENGTH = re.compile(
    r"^(sliding_window(_size)?|(local_)?window_size|attention_window_size|attention_chunk_size|window_size_left"
    r"|(original_)?max_(position_embeddings|sequence_length|seq_len(gth)?|target_positions)|n_positions|n_ctx|seq_length"
    r"|(mamba_)?chunk_size|floor_scale)$"
)
_HEADS = re.compile(
    r"(heads?|_heads?_kv|kv_heads?)$|^n_head|^multi_query_group_num$|^(mamba_)?n_groups$|attention_groups$"
)
_HEAD_DIM = re.compile(r"(head_dim|head_size|d_head|head_width|v_dim|rotary_dim|rope_dim)$|^(kv_channels|d_kv)$")
_RANK = re.compile(r"(lora_rank|low_rank_dim|lora|_rank)$")
_WIDTH = re.compile(r"(^|_)(hidden_size|intermediate_size|ffn_dim|ffn_hidden_size|n_embd|n_inner|d_model|d_ff|width"
                    r"|embed(ding)?_dim|embedding_size|dim|size_mlp|d_inner|d_ssm|per_layer_input)$")  # fmt: skip
_CHOICE = re.compile(r"(experts_per_tok(en)?|moe_top_?k|moe_k|top_k_experts|num_selected_experts|experts_top_k)$")
_EXPERT_COUNT = re.compile(r"^(?!.*(shared|zero|dense|group|capacity|layer)).*(num_|n_).*experts$")
_PERIOD = re.compile(r"(period|freq|frequency|interval|every_n|_step|every|pattern)(_layers?)?$")
_FIRST = re.compile(r"first_k_dense|dense_layers$|^max_window_layers$|layer_start_index$")
_LAST = re.compile(r"shared_layers$")


@dataclass(frozen=True, slots=True)
class _Field:
    """A value of a config or of a dict inside it, and how to change it."""

    owner: Any
    name: str
    value: Any

    def set(self, value: Any) -> None:
        if isinstance(self.owner, dict):
            self.owner[self.name] = value
        else:
            setattr(self.owner, self.name, value)

    def change(self, by: Callable[[int], int]) -> None:
        """Apply to a whole number, or to every whole number of a list."""
        if _whole(self.value):
            self.set(by(self.value))
        elif isinstance(self.value, list | tuple) and self.value and all(map(_whole, self.value)):
            self.set([by(v) for v in self.value])

    @property
    def numbers(self) -> list[int]:
        """The positive whole numbers in it."""
        values = self.value if isinstance(self.value, list | tuple) else [self.value]
        return [v for v in values if _whole(v) and v > 0]


def shrink(config: Any, runs: Callable[[Any], None]) -> Any:
    """The smallest config derived from ``config`` for which ``runs`` raises no UserError; ``config`` stays as it is.

    Raises the first attempt's UserError where there is none.
    """
    first: UserError | None = None
    for divide_heads, count_heads, cut_experts in product((True, False), (True, False), (True, False)):
        try:
            tiny = _shrunk(config, divide_heads, count_heads, cut_experts)
            runs(tiny)
        except UserError as error:
            first = first or error
        else:
            return tiny
    assert first is not None  # at least one attempt was made
    raise first


def _shrunk(config: Any, head_dims: bool, heads: bool, experts: bool) -> Any:
    tiny = copy.deepcopy(config)
    decoder = tiny.get_text_config(decoder=True)
    try:
        overrides = decoder.to_dict().get("per_layer_config")
        if overrides:  # attributes that vary by layer cannot be read while they do: keep them aside as plain fields
            decoder.per_layer_config = None
            setattr(decoder, _OVERRIDES, {int(layer): dict(values) for layer, values in overrides.items()})
        _cut_layers(decoder)
        _cut_lengths(tiny)
        _divide_widths(tiny, head_dims, heads)
        if experts:
            _cut_experts(tiny)
        _cut_vocabulary(tiny)
        if overrides:
            decoder.per_layer_config = vars(decoder).pop(_OVERRIDES)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:  # what configs of theirs raise
        raise UserError(f"their config cannot be made small ({first_line(error)})") from error
    return tiny


def lengths(config: Any) -> list[int]:
    """The distinct length-like values of a config that lie within reach of a tiny run, ascending."""
    found = {n for f in _fields(config) if _LENGTH.search(f.name) for n in f.numbers}
    return sorted(n for n in found if n <= LONGEST)


def _fields(owner: Any) -> Iterator[_Field]:
    items = owner.items() if isinstance(owner, dict) else list(vars(owner).items())
    for name, value in list(items):
        if str(name).startswith("_"):
            continue
        if isinstance(value, dict | PreTrainedConfig):
            yield from _fields(value)
        else:
            yield _Field(owner, str(name), value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _cut_layers(config: Any) -> None:
    """Keep the fewest layers that show every kind, with the per-layer lists in step."""
    count = int(config.num_hidden_layers)
    fields = [f for f in _fields(config) if f.name != "num_hidden_layers"]
    indices = [f for f in fields if _indexes_layers(f, count)]
    listed = [
        f for f in fields if isinstance(f.value, list | tuple | str) and len(f.value) == count and f not in indices
    ]
    listed = [f for f in listed if "token" not in f.name]
    overrides = vars(config).get(_OVERRIDES, {})
    periods = [f.value for f in fields if _PERIOD.search(f.name) and _whole(f.value) and 1 < f.value <= count]
    firsts = [f for f in fields if _FIRST.search(f.name) and _whole(f.value)]
    lasts = [f for f in fields if _LAST.search(f.name) and _whole(f.value) and f.value > 0]

    def kind(i: int) -> str:
        parts: list[Any] = [f.value[i] for f in listed] + [i + (max(f.value) == count) in f.value for f in indices]
        parts += [overrides.get(i), *(i % p for p in periods)]
        parts += [*(i < f.value for f in firsts), *(i >= count - f.value for f in lasts)]
        return repr(parts)

    kept = _shown(count, kind, bool(periods or indices))
    for f in listed:
        f.set("".join(f.value[i] for i in kept) if isinstance(f.value, str) else [f.value[i] for i in kept])
    for f in indices:  # a list that counts from 1 names the last
        f.set([i for i in f.value if i - (max(f.value) == count) < len(kept)])
    for f in firsts:
        f.set(sum(i < f.value for i in kept))
    for f in lasts:
        f.set(sum(i >= count - f.value for i in kept))
    if overrides:
        setattr(config, _OVERRIDES, {at: overrides[i] for at, i in enumerate(kept) if i in overrides})
    config.num_hidden_layers = len(kept)


def _indexes_layers(field: _Field, count: int) -> bool:
    """Whether a field lists layers by number: a list of one value per layer repeats them, or is not in order."""
    value = field.value
    named = re.search(r"layer|idx|indices|hybrid", field.name) and not re.search(r"token|type", field.name)
    if not named or not isinstance(value, list | tuple) or not value:
        return False
    return all(_whole(i) and 0 <= i <= count for i in value) and list(value) == sorted(set(value))


def _shown(count: int, kind: Callable[[int], str], prefix: bool) -> Sequence[int]:
    """Layers that show every kind: the first of each; where kinds follow from a layer's number, the first so many."""
    first: dict[str, int] = {}
    for i in range(count):
        first.setdefault(kind(i), i)
    if prefix:
        return range(max(max(first.values()) + 1, min(2, count)))
    kept = set(first.values())
    if len(kept) == 1 < count:
        kept.add(1)  # the first of its kind is layer 0; a second one shows that layers are told apart
    return sorted(kept)


def _cut_lengths(config: Any) -> None:
    """Map lengths into [SHORTEST, LONGEST], in their order and roughly in their ratios."""
    found = sorted({n for f in _fields(config) if _LENGTH.search(f.name) for n in f.numbers if n > SHORTEST})
    if not found:
        return
    small: dict[int, int] = {}
    last = 0
    for at, value in enumerate(found):
        above = len(found) - 1 - at
        wanted = max(SHORTEST, value * LONGEST // found[-1] // 2 * 2, last + 4)
        last = small[value] = min(wanted, LONGEST - 4 * above)
    for f in _fields(config):
        if _LENGTH.search(f.name):
            f.change(lambda n: small.get(n, n))


def _divide_widths(config: Any, dims: bool, counts: bool) -> None:
    """Divide head widths by g, head counts by h and all other widths by g · h, so that products stay in proportion."""
    decoder = config.get_text_config(decoder=True)
    fields = list(_fields(decoder))
    head_dims = [n for f in fields if _HEAD_DIM.search(f.name) for n in f.numbers]
    heads = [n for f in fields if _HEADS.search(f.name) for n in f.numbers]
    hidden, main = int(decoder.hidden_size), max(_numbers(decoder, "num_attention_heads"), default=0)
    if main and hidden % main == 0:
        head_dims = head_dims or [hidden // main]
    g = _divisor(head_dims, lambda n: n >= _LEAST_HEAD and n % 2 == 0) if dims and head_dims else 1
    h = _divisor(heads, lambda n: n >= 2, may_be_one=True) if counts and heads else 1
    while h > 1 and main and (main // h < 4 or main % h):
        h = next(d for d in range(h - 1, 0, -1) if all(n % d == 0 for n in heads if n > 1))

    def width(n: int) -> int:
        if n % (g * h) == 0 or n <= _LEAST_WIDTH:
            return n // (g * h) if n % (g * h) == 0 else n
        return max(_LEAST_WIDTH, n // (g * h) // 8 * 8)

    for f in list(_fields(config)):
        if _HEAD_DIM.search(f.name):
            f.change(lambda n: n // g if n > 0 else n)
        elif _HEADS.search(f.name):
            f.change(lambda n: n // h if n > 1 else n)
        elif _RANK.search(f.name):
            f.change(lambda n: max(8, n // (g * h) // 2 * 2) if n > 8 else n)
        elif _WIDTH.search(f.name):
            f.change(width)
        elif f.name in ("short_factor", "long_factor") and isinstance(f.value, list):
            f.set(f.value[::g][: max(1, len(f.value) // g)])
        elif f.name == "mrope_section" and isinstance(f.value, list):
            f.set(_split(f.value, sum(f.value) // g))


def _numbers(config: Any, name: str) -> list[int]:
    return _Field(config, name, getattr(config, name, None)).numbers


def _divisor(numbers: Sequence[int], good: Callable[[int], bool], may_be_one: bool = False) -> int:
    """The largest common divisor that leaves every quotient good; numbers that are 1 count where they may not be."""
    numbers = [n for n in numbers if n > 1 or not may_be_one]
    common = gcd(*numbers) if numbers else 1
    return next((d for d in range(common, 1, -1) if common % d == 0 and all(good(n // d) for n in numbers)), 1)


def _split(parts: Sequence[int], total: int) -> list[int]:
    """Whole numbers in the ratios of ``parts`` with the sum ``total``."""
    out = [p * total // (sum(parts) or 1) for p in parts]
    out[0] += total - sum(out)
    return out


def _cut_experts(config: Any) -> None:
    for f in _fields(config):
        if _CHOICE.search(f.name):
            f.change(lambda n: min(n, _CHOSEN))
        elif _EXPERT_COUNT.search(f.name):
            f.change(lambda n: min(n, _EXPERTS))
        elif f.name in ("n_group", "topk_group") and _whole(f.value):
            f.set(min(f.value, 2 if f.name == "n_group" else 1))


def _cut_vocabulary(config: Any) -> None:
    """A small vocabulary that holds the special tokens."""
    for f in _fields(config):
        if _VOCABULARY.search(f.name):
            f.change(lambda n: min(n, VOCABULARY))
        elif _TOKEN.search(f.name):
            low = next((i for i, kind in enumerate(("pad", "bos", "eos")) if f.name.startswith(kind)), 3)
            f.change(lambda n, low=low: n if n < VOCABULARY else low)  # type: ignore[misc]  # a default binds the loop's value
