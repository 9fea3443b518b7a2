"""How each parameter of a model is made from the tensors of a checkpoint, renamed and merged as transformers does."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from penstock.errors import UserError
from penstock.model.fp8_parameter import Fp8Parameter
from penstock.model.parameter_source import ParameterSource, Raw, same_bytes
from penstock.model.traced_bytes import NotBytesInOrder, Traced

NAMED = 3  # names listed in a message before the rest is counted


class Shapes:
    """What conversion operations ask of a model: its config and its parameters' shapes, as they were when planned."""

    def __init__(self, config: Any, state: Mapping[str, torch.Tensor]) -> None:
        self.config = config
        self._state = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}

    def get_parameter(self, name: str) -> torch.Tensor:
        """The parameter or buffer of that name, on meta."""
        return self._state[name]

    get_parameter_or_buffer = get_parameter


@dataclass(frozen=True)
class Conversion:
    """One conversion of transformers: stored tensors, by the source pattern that each matched, become parameters.

    converter: a WeightConverter that holds no tensors yet. first: the first parameter's name, from which transformers
    derives those of the others. dtype: torch's name; sources of another dtype are cast to it before converting.
    """

    converter: Any
    first: str
    dtype: str
    sources: Mapping[str, tuple[ParameterSource, ...]]
    shapes: Shapes

    def run(self, tensors: Mapping[str, list[Any]]) -> dict[str, Any]:
        """The parameters made from tensors, or from stand-ins for them, given by source pattern."""
        converter = deepcopy(self.converter)
        converter.collected_tensors.update(tensors)
        made = converter.convert(self.first, model=self.shapes, config=self.shapes.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


@dataclass(frozen=True)
class Converted:
    """A parameter that transformers' own operations compute from stored tensors; ``name`` is its own."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    conversion: Conversion

    @property
    def by_rows(self) -> bool:
        """False: ``load`` of any rows converts everything."""
        return False

    def load(self, start: int | None = None, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) as a new tensor; reads all sources of the conversion, whatever the rows."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        sources = self.conversion.sources.items()
        made = self.conversion.run({pattern: [each.load().to(dtype) for each in stored] for pattern, stored in sources})
        tensor: torch.Tensor = made[self.name]
        whole = start is None and stop is None
        return tensor.contiguous() if whole else tensor[start:stop].clone(memory_format=torch.contiguous_format)


def plan_parameters(model: Any, stored: Mapping[str, ParameterSource]) -> dict[str, ParameterSource]:
    """How each parameter and persistent buffer of ``model`` is made; tied ones share one source.

    model: a transformers model, on meta. stored: a checkpoint's tensors by name; those that the model has no use for
    are ignored. Parameters that the model's class allows to be missing (``_keys_to_ignore_on_load_missing``) are left
    out when they are. Raises UserError for other missing tensors and for wrong shapes.
    """
    state = model.state_dict(keep_vars=True)
    plan = _plan(model, state, stored)
    if any(name not in plan for name in state):
        # A text model's tensors inside a larger checkpoint, under a prefix that transformers does not know of.
        inner = _under_base_prefix(model, state, stored)
        plan = max(plan, _plan(model, state, inner), key=len) if inner else plan
    _tie(model, state, plan)
    _check(model, state, plan)
    return {name: plan[name] for name in state if name in plan}


def _plan(
    model: Any, state: Mapping[str, torch.Tensor], stored: Mapping[str, ParameterSource]
) -> dict[str, ParameterSource]:
    """What can be made of the stored tensors, before ties (transformers: ``convert_and_load_state_dict_in_model``)."""
    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    base = model.base_model_prefix
    shapes = Shapes(model.config, state)
    plan: dict[str, ParameterSource] = {}
    gathered: dict[str, tuple[Any, dict[str, list[ParameterSource]]]] = {}
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, base, state)
        if name not in state and key in state:
            name, pattern = rename_source_key(key, [], [], base, state)
        if name not in state:
            continue
        if pattern is None:
            plan.setdefault(name, stored[key])
        else:
            _, sources = gathered.setdefault(name, (by_pattern[pattern], {}))
            sources.setdefault(pattern, []).append(stored[key])
    for name, (converter, sources) in gathered.items():
        dtypes = {each.dtype for parts in sources.values() for each in parts}
        dtype = dtypes.pop() if len(dtypes) == 1 else str(state[name].dtype).removeprefix("torch.")
        frozen = {pattern: tuple(parts) for pattern, parts in sources.items()}
        plan |= _outputs(Conversion(converter, name, dtype, frozen, shapes))
    return plan


def _outputs(conversion: Conversion) -> dict[str, ParameterSource]:
    """The parameters that a conversion makes: as runs of file bytes where it only puts these in order."""
    try:
        return _ordered(conversion)
    except (NotBytesInOrder, TypeError):  # arithmetic on a stand-in is a TypeError
        pass
    except (ValueError, RuntimeError) as error:
        raise _unmade(conversion, error) from error
    dtype: torch.dtype = getattr(torch, conversion.dtype)
    metas = {
        pattern: [torch.empty(each.shape, dtype=dtype, device="meta") for each in stored]
        for pattern, stored in conversion.sources.items()
    }
    try:
        made = conversion.run(metas)
    except (ValueError, RuntimeError) as error:
        raise _unmade(conversion, error) from error
    return {name: Converted(name, tuple(meta.shape), conversion.dtype, conversion) for name, meta in made.items()}


def _ordered(conversion: Conversion) -> dict[str, ParameterSource]:
    """The parameters of a conversion that does nothing but put bytes in order; NotBytesInOrder where it does more."""
    stored = [each for parts in conversion.sources.values() for each in parts]
    if any(each.dtype != conversion.dtype for each in stored):
        raise NotBytesInOrder("sources of several dtypes")
    scaled = next((each for each in stored if isinstance(each, Fp8Parameter)), None)
    kind = Raw if scaled is None else Fp8Parameter
    made = conversion.run(
        {pattern: [_traced(each, kind) for each in parts] for pattern, parts in conversion.sources.items()}
    )
    return {name: traced.raw if scaled is None else scaled.moved(traced.raw) for name, traced in made.items()}


def _traced(source: ParameterSource, kind: type[Raw | Fp8Parameter]) -> Traced:
    """A stand-in for the bytes of a source of that kind, or NotBytesInOrder."""
    if not isinstance(source, kind):
        raise NotBytesInOrder("sources of several kinds")
    return Traced(source if isinstance(source, Raw) else source.codes)


def _unmade(conversion: Conversion, error: Exception) -> UserError:
    count = sum(map(len, conversion.sources.values()))
    reason = " ".join(str(error).split())
    return UserError(f"{conversion.first} cannot be made from the checkpoint's {count} tensors for it: {reason}")


def _under_base_prefix(
    model: Any, state: Mapping[str, torch.Tensor], stored: Mapping[str, ParameterSource]
) -> dict[str, ParameterSource]:
    """The stored tensors under the prefix that most names of the base model have there, renamed to the model's own.

    Names outside the base model (the head) lose whatever stands before them. Empty where no such prefix is found.
    """
    base = f"{model.base_model_prefix}."
    wanted = {name.removeprefix(base) for name in state if name.startswith(base)}
    prefixes = Counter(key[: -len(tail)] for key in stored for tail in _tails(key) if tail in wanted)
    if not prefixes:
        return {}
    prefix, _ = prefixes.most_common(1)[0]
    renamed = {base + key.removeprefix(prefix): stored[key] for key in stored if key.startswith(prefix)}
    outside = {name for name in state if not name.startswith(base)}
    for key in sorted(stored, key=len, reverse=True):  # the shortest, hence outermost, has the last word
        renamed |= {tail: stored[key] for tail in _tails(key) if tail in outside}
    return renamed


def _tails(key: str) -> Iterable[str]:
    """``a.b.c`` has the tails ``a.b.c``, ``b.c`` and ``c``."""
    parts = key.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _tie(model: Any, state: Mapping[str, torch.Tensor], plan: dict[str, ParameterSource]) -> None:
    """Give tied names the source of the one that is stored; where both are, only if their bytes are the same."""
    ties: dict[str, str] = dict(getattr(model, "all_tied_weights_keys", None) or {})
    firsts: dict[int, str] = {}
    for name, tensor in state.items():
        first = firsts.setdefault(id(tensor), name)
        if first != name and ties.get(first) != name:
            ties.setdefault(name, first)
    groups: dict[str, list[str]] = {}
    for name, kept in ties.items():
        groups.setdefault(kept, [kept]).append(name)
    for names in groups.values():
        stored = [name for name in names if name in plan]
        for name in names:
            if stored and name not in plan:
                plan[name] = plan[stored[0]]
        for name in stored[1:]:
            one, other = plan[stored[0]], plan[name]
            if isinstance(one, Raw) and isinstance(other, Raw) and same_bytes(one, other):
                plan[name] = one


def _check(model: Any, state: Mapping[str, torch.Tensor], plan: Mapping[str, ParameterSource]) -> None:
    optional = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    missing = [name for name in state if name not in plan and not any(re.search(pattern, name) for pattern in optional)]
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise UserError(f"The checkpoint lacks tensors that its config asks for: {', '.join(missing[:NAMED])}{more}.")
    wrong = [name for name, source in plan.items() if name in state and source.shape != tuple(state[name].shape)]
    if wrong:
        name, more = wrong[0], f" ({len(wrong) - 1} more differ)" if len(wrong) > 1 else ""
        stored, asked = list(plan[name].shape), list(state[name].shape)
        raise UserError(f"The checkpoint holds {name} of shape {stored}, its config asks for {asked}{more}.")
