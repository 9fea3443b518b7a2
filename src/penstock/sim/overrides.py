"""Keys of a scenario set from outside: `decode_tokens=8192`, `hbm=2000 GB/s`, `target=0.7,0.8`.

A key of a table is found by its own name (`overlap`, `hbm`) or its whole one (`trace.overlap`); names of policies'
options stand for `options.` of them.
"""

import copy
import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from penstock.errors import UserError
from penstock.sim.options import Option
from penstock.sim.registry import BUDGET, migrations, placements
from penstock.sim.scenario_file import Document, known_keys

_NEXT_KEY = re.compile(r",(?=\s*[A-Za-z_][\w.]*\s*=)")
_NOT_SWEPT = {
    "name": "it changes nothing",
    "skip_levels": "sweep skip instead",
    "placement": "name several with --placement",
    "migration": "name several with --migration",
    "options": "name the option, such as target=0.7,0.8",
}


def read_settings(flag: str, given: Iterable[str]) -> dict[str, object]:
    """Whole key names to values, from texts such as `omega=0.8,phi=0.8`; flag: how the person gave them."""
    settings: dict[str, object] = {}
    for text in given:
        for part in _NEXT_KEY.split(text):
            key, value = _parted(flag, part)
            settings[whole_key(key, flag)] = read_value(value)
    return settings


def read_sweeps(flag: str, given: Iterable[str]) -> dict[str, tuple[object, ...]]:
    """Whole key names to the values that each is to take, from texts such as `target=0.7,0.8`."""
    sweeps: dict[str, tuple[object, ...]] = {}
    for text in given:
        key, listed = _parted(flag, text)
        name = "skip" if key in ("skip", "skip_levels") else whole_key(key, flag)
        if name in _NOT_SWEPT:
            raise UserError(f"{flag} {text}: {key} cannot be swept: {_NOT_SWEPT[name]}")
        values = tuple(read_value(value) for value in listed.split(","))
        if name in sweeps or any(values.index(value) < index for index, value in enumerate(values)):
            raise UserError(f"{flag} {text}: {key} has a value twice; give each once, in one {flag}")
        sweeps[name] = values
    return sweeps


def read_value(text: str) -> object:
    """A number, true, false or a list in brackets where the text is one, else the text itself."""
    stripped = text.strip()
    try:
        value = tomllib.loads(f"value = {stripped}")["value"]
    except tomllib.TOMLDecodeError:
        pass
    else:
        if isinstance(value, bool | int | float | str | list):
            return value
    try:
        return float(stripped)  # .5, which is no TOML
    except ValueError:
        return stripped


def whole_key(key: str, flag: str) -> str:
    """A key with the table it stands in; UserError where no scenario has it."""
    tables = known_keys()
    head, _, rest = key.partition(".")
    if key in tables or key in ("n_prefill", "n_decode") or (head == "options" and rest):
        return {"n_prefill": "prefill_tokens", "n_decode": "decode_tokens"}.get(key, key)
    if head in tables and rest in tables[head]:
        return key
    for table, keys in tables.items():
        if key in keys:
            return f"{table}.{key}"
    if key in option_names():
        return f"options.{key}"
    everything = [*tables, *(inner for keys in tables.values() for inner in keys), *sorted(option_names())]
    close = difflib.get_close_matches(key, everything, n=1)
    told = f"did you mean {close[0]}?" if close else f"known are {', '.join(everything)}"
    raise UserError(f"{flag} {key}=…: no scenario has the key {key}: {told}")


def option_names() -> frozenset[str]:
    """The options that some policy has."""
    return frozenset(option.name for option in all_options()) - {BUDGET.name}


def all_options() -> Iterator[Option]:
    """The options of every policy that comes with Penstock."""
    for placement in placements().values():
        yield from placement.options
    for migration in migrations().values():
        yield from migration.options


def with_settings(document: Mapping[str, Any], settings: Mapping[str, object]) -> Document:
    """A copy of a document with these keys set."""
    changed = copy.deepcopy(dict(document))
    for alias, name in (("n_prefill", "prefill_tokens"), ("n_decode", "decode_tokens")):
        if name in settings:
            changed.pop(alias, None)
    for key, value in settings.items():
        *tables, name = key.split(".")
        place = changed
        for table in tables:
            inner = place.setdefault(table, {})
            if not isinstance(inner, dict):
                raise UserError(f"{key} cannot be set: {table} is no table in this scenario")
            place = inner
        place[name] = value
    return changed


def combinations(sweeps: Mapping[str, Sequence[object]]) -> Iterator[dict[str, object]]:
    """Every combination of swept values, the last key changing fastest; one empty one without sweeps."""
    for values in product(*sweeps.values()):
        yield dict(zip(sweeps, values, strict=True))


def _parted(flag: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise UserError(f"{flag} {text}: give KEY=VALUE, such as decode_tokens=8192")
    return key.strip(), value.strip()
