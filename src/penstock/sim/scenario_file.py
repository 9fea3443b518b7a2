"""Scenarios as people and programs write them, in TOML or JSON; docs/simulate.md has the keys.

What cannot be read raises UserError in one line: the file, the key, what was given and how to mend it.
"""

import difflib
import json
import tomllib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator
from pydantic_core import ErrorDetails

from penstock.errors import UserError
from penstock.sim import scenario_quantities as quantities
from penstock.sim.given import Given, SkipSets, TraceRule
from penstock.sim.memories import Duplex, Memories
from penstock.sim.scenario import Initial, Mode, Passive, Scenario, Start, WeightOrder

Document = dict[str, Any]

_LONGEST_SHOWN = 60
_ALIASES = {"n_prefill": "prefill_tokens", "n_decode": "decode_tokens"}


def read_document(path: Path) -> Document:
    """The keys of a TOML or, by its suffix, JSON file, unchecked; UserError where it is neither."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give the path of a scenario file") from None
    except ValueError:
        raise UserError(f"{path}: not a text in UTF-8: give a scenario in TOML or JSON") from None
    kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
    try:
        document = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not {kind}: {error}: see docs/simulate.md for an example") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: a list or value, not an object of keys: see docs/simulate.md for an example")
    return document


def parse(document: Mapping[str, Any], source: str) -> Given:
    """What a document says; source: its file or name, which mistakes are told with and an unnamed scenario gets."""
    plain = _without_aliases(document, source)
    try:
        return _ScenarioTable.model_validate(plain).given(Path(source).stem)
    except ValidationError as error:
        raise UserError(f"{source}: {_said(error.errors()[0])}") from None
    except (ValueError, UserError) as error:
        raise UserError(f"{source}: {error}") from None


def known_keys() -> Mapping[str, tuple[str, ...]]:
    """Keys of a scenario, each with those of its table (empty: it is none)."""
    tables = {"bandwidths": tuple(_Bandwidths.model_fields), "trace": tuple(_TraceTable.model_fields)}
    return {name: tables.get(name, ()) for name in sorted(_ScenarioTable.model_fields)}


_Size = Annotated[int, PlainValidator(quantities.read_size)]
_Amount = Annotated[int, PlainValidator(quantities.read_amount)]
_Rate = Annotated[int, PlainValidator(quantities.read_rate)]
_Seconds = Annotated[float, PlainValidator(quantities.read_seconds)]
_Share = Annotated[Fraction, PlainValidator(quantities.read_share)]
_Omega = Annotated[Fraction | Literal["fit"], PlainValidator(quantities.read_omega)]
_Level = Annotated[float, PlainValidator(quantities.read_level)]
_Levels = Annotated[tuple[float, ...], PlainValidator(quantities.read_levels)]
_Count = Annotated[int, PlainValidator(quantities.read_count)]
_Whole = Annotated[int, PlainValidator(quantities.read_whole)]
_Sets = Annotated[SkipSets, PlainValidator(quantities.read_skip_sets)]


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Bandwidths(_Table):
    hbm: _Rate
    ext_read: _Rate
    ext_write: _Rate
    ext_internal: _Rate


class _TraceTable(_Table):
    overlap: _Level = 0.9
    sinks: _Whole | None = None
    recent: _Whole | None = None
    correlation: _Level = 0.5
    seed: _Whole = 0
    file: str | None = None


class _ScenarioTable(_Table):
    name: str | None = None
    layers: _Count
    prefill_tokens: _Whole
    decode_tokens: _Count
    batch: _Count = 1
    w_attn_bytes: _Amount | None = None
    w_mlp_bytes: _Amount | None = None
    weights_bytes: _Amount | None = None
    parameters: _Count | None = None
    bits_per_weight: _Count = 16
    weight_capacity_bytes: _Amount | None = None
    kv_bytes: _Size | None = None
    kv_token_bytes: _Size | None = None
    hbm_capacity_bytes: _Size
    bandwidths: _Bandwidths
    duplex: Literal["full", "half", "serial"] = "full"
    mode: Literal["exclusive", "inclusive"] = "exclusive"
    passive: Literal["off", "all", "alpha"] = "off"
    init: Literal["hbm", "ratio", "fraction"] | None = None
    omega: _Omega | None = None
    phi: _Share | None = None
    weights: Literal["uniform", "by-layer"] = "uniform"
    compute_s: _Seconds = 0.0
    fixed_s: _Seconds = 0.0
    skip_levels: _Levels | None = None
    skip: _Sets | None = None
    trace: _TraceTable = Field(default_factory=_TraceTable)
    placement: str | None = None
    migration: str | None = None
    budget: Literal["all", "slack"] = "all"
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _sets_fit(self) -> Self:
        if self.skip is None:
            return self
        if self.skip_levels is not None or self.trace.file is not None:
            other = "trace.file" if self.trace.file is not None else "skip_levels"
            raise ValueError(f"skip and {other} both say what is skipped: leave one out")
        quantities.check_skip_sets(self.skip, self.prefill_tokens, self.decode_tokens, self.layers)
        return self

    def given(self, name: str) -> Given:
        """The values that the rest of the program reads; ValueError where keys contradict each other."""
        attn_bytes, mlp_bytes = self._weights()
        memories = Memories(
            self.hbm_capacity_bytes,
            self.bandwidths.hbm,
            self.bandwidths.ext_read,
            self.bandwidths.ext_write,
            self.bandwidths.ext_internal,
            Duplex(self.duplex),
        )
        kv_bytes = self._kv()
        return Given(
            Scenario(
                name=self.name or name,
                memories=memories,
                layers=self.layers,
                attn_bytes=attn_bytes,
                mlp_bytes=mlp_bytes,
                kv_bytes=kv_bytes,
                prefill_tokens=self.prefill_tokens,
                decode_tokens=self.decode_tokens,
                initial=self._initial(kv_bytes * self.layers * self.prefill_tokens, attn_bytes + mlp_bytes),
                mode=Mode(self.mode),
                passive=Passive(self.passive),
                compute_s=self.compute_s,
                fixed_s=self.fixed_s,
                weight_capacity_bytes=self.weight_capacity_bytes,
            ),
            levels=(0.0,) if self.skip_levels is None else self.skip_levels,
            trace=TraceRule(**self.trace.model_dump()),
            skip=self.skip,
            placement=self.placement,
            migration=self.migration,
            options={key: value for key, value in self.options.items() if key != "budget"},
            slack=self._slack(),
            batch=self.batch,
        )

    def _weights(self) -> tuple[int, int]:
        """The bytes of a layer's two sublayers; where only a total is known they are as 1 to 2 (4d² to 8d²)."""
        pair = (self.w_attn_bytes, self.w_mlp_bytes)
        forms = [any(part is not None for part in pair), self.weights_bytes is not None, self.parameters is not None]
        if sum(forms) != 1:
            raise ValueError(
                f"the model's weights are given in {sum(forms)} ways: give one of weights_bytes, "
                "parameters (with bits_per_weight), or w_attn_bytes with w_mlp_bytes"
            )
        attn, mlp = pair
        if forms[0]:
            if attn is None or mlp is None:
                missing = "w_attn_bytes" if attn is None else "w_mlp_bytes"
                raise ValueError(f"{missing} is missing: it is needed beside the other sublayer's bytes of a layer")
            return attn, mlp
        total = self.weights_bytes
        if total is None:
            total = (self.parameters or 0) * self.bits_per_weight // 8
        layer = total // self.layers
        return layer // 3, layer - layer // 3

    def _kv(self) -> int:
        if (self.kv_bytes is None) == (self.kv_token_bytes is None):
            raise ValueError(
                "KV is given in "
                + ("no way" if self.kv_bytes is None else "two ways")
                + ": give kv_bytes (a token at one layer, all rows) or kv_token_bytes (a token of one row, all layers)"
            )
        if self.kv_bytes is not None:
            return self.kv_bytes
        assert self.kv_token_bytes is not None  # one of the two is given
        item, rest = divmod(self.kv_token_bytes * self.batch, self.layers)
        if rest or not item:
            raise ValueError(
                f"kv_token_bytes of {self.kv_token_bytes:,} times {self.batch} rows is no whole number of bytes "
                f"for each of {self.layers} layers: give kv_bytes, the bytes at one layer"
            )
        return item

    def _initial(self, prefill_kv_bytes: int, layer_bytes: int) -> Initial:
        omega = self.omega
        start = self.init or ("hbm" if self.phi is None else "fraction")
        if omega == "fit" and start == "ratio":
            omega = None  # a start that says how much of the weights it takes needs no fitting
        if omega == "fit":
            weights = self.weight_capacity_bytes or layer_bytes * self.layers
            free = self.hbm_capacity_bytes - prefill_kv_bytes
            if free < 0:
                raise ValueError(
                    f"omega is 'fit', but the prefill KV alone is {prefill_kv_bytes:,} bytes in an HBM of "
                    f"{self.hbm_capacity_bytes:,}: give omega as a number from 0 to 1"
                )
            omega = min(Fraction(1), Fraction(free, weights)) if weights else Fraction(1)
        return Initial(Start(start), omega, self.phi, WeightOrder(self.weights))

    def _slack(self) -> bool:
        budget = self.options.get("budget", self.budget)
        if budget not in ("all", "slack"):
            raise ValueError(f"options.budget is {_shown(budget)}: give 'all' or 'slack'")
        return bool(budget == "slack")


def _without_aliases(document: Mapping[str, Any], source: str) -> Document:
    plain: Document = {}
    for key, value in document.items():
        name = _ALIASES.get(key, key)
        if name in plain:
            raise UserError(f"{source}: {key} and {name} say the same thing: leave one out")
        plain[name] = value
    return plain


def _said(mistake: ErrorDetails) -> str:
    """One line on one mistake: dotted key, what was given, what is allowed."""
    parts = [str(part) for part in mistake["loc"]]
    message = mistake["msg"].removeprefix("Value error, ")
    key = ".".join(parts)
    if not parts:
        return message
    if mistake["type"] == "missing":
        return f"{key} is missing: give it ({_ASKED.get(parts[-1], 'see docs/simulate.md')})"
    if mistake["type"] == "extra_forbidden":
        return f"{key} is not known: {_nearest(parts)}"
    if mistake["type"] == "literal_error":
        message = f"give {mistake['ctx']['expected']}"
    elif mistake["type"] in ("string_type", "model_type", "dict_type"):
        message = "give a text in quotes" if mistake["type"] == "string_type" else f"give a table [{key}] of keys"
    return f"{key} is {_shown(mistake['input'])}: {message}"


def _nearest(parts: list[str]) -> str:
    keys = known_keys()
    among = keys.get(parts[0], ()) if len(parts) > 1 else tuple(keys)
    close = difflib.get_close_matches(parts[-1], among, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(among)}"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"


_ASKED = {
    "layers": "the model's layers, such as 32",
    "prefill_tokens": "tokens before the decode, such as 1024",
    "decode_tokens": "tokens to decode, such as 4096",
    "hbm_capacity_bytes": 'such as "141 GB"',
    "bandwidths": 'a table of hbm, ext_read, ext_write and ext_internal, such as "900 GB/s"',
    "hbm": 'such as "4915 GB/s"',
    "ext_read": 'such as "900 GB/s"',
    "ext_write": 'such as "900 GB/s"',
    "ext_internal": 'such as "1900 GB/s"',
}
