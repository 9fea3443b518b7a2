"""The stored profile: readable JSON under the user's cache directory, which a person may look at and edit."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from penstock.directories import cache_directory
from penstock.errors import UserError
from penstock.machine.machine import Curve, Link, LinkName, Machine, Processor
from penstock.part_file import PartFile
from penstock.plan.policy import Tier
from penstock.profiling.disk import Disk
from penstock.profiling.profile import Host, Profile

_DIGITS = 4  # no rate is known to more of them
_LONGEST_SHOWN = 60
# numbers that nothing reckoned with them overflows
_Rate = Annotated[float, Field(ge=1e-6, le=1e30)]
_Seconds = Annotated[float, Field(ge=0, le=1e30)]
_Bytes = Annotated[int, Field(ge=0, le=2**63 - 1)]
_Rates = Annotated[dict[PositiveInt | _Rate, _Rate], Field(min_length=1)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Link(_Form):
    bytes_per_s: _Rate
    latency_s: _Seconds = 0.0
    staging_bytes_per_s: _Rate | None = None
    kv_bytes_per_s: _Rate | None = None
    jitter: float = Field(default=0.0, ge=0, lt=1)

    def value(self) -> Link:
        staging = self.staging_bytes_per_s or math.inf
        return Link(self.bytes_per_s, self.latency_s, staging, self.kv_bytes_per_s, self.jitter)


class _Processor(_Form):
    products: dict[str, _Rates] = Field(min_length=1)
    attention: _Rates
    kv_bytes_per_s: _Rate
    activation_bytes_per_s: _Rate
    dequantise_per_s: _Rate | None = None
    visit_s: _Seconds
    sweep_s: _Seconds
    row_s: _Seconds
    logit_s: _Seconds
    expert_s: _Seconds = 0.0
    attention_row_s: _Seconds = 0.0
    fresh_bytes_per_s: _Rate | None = None
    product_s: dict[str, _Seconds] = {}

    def value(self) -> Processor:
        plain = self.model_dump(exclude={"products", "attention", "dequantise_per_s", "fresh_bytes_per_s"})
        return Processor(
            products={name: _curve(rates) for name, rates in self.products.items()},
            attention=_curve(self.attention),
            dequantise_per_s=self.dequantise_per_s or math.inf,
            fresh_bytes_per_s=self.fresh_bytes_per_s or math.inf,
            **plain,
        )


class _Machine(_Form):
    name: str
    memory: dict[Tier, _Bytes]
    links: dict[LinkName, _Link]
    processors: dict[Tier, _Processor] = Field(min_length=1)
    compute_loses: float = Field(ge=0, lt=1)
    disk_loses: float = Field(ge=0, lt=1)
    source: dict[str, str] = {}

    @model_validator(mode="after")
    def _whole(self) -> "_Machine":
        """A host has a cpu and a disk, and a gpu's links where it has one."""
        needed = ["memory.cpu", "memory.disk", "processors.cpu", "links.disk→cpu", "links.cpu→disk"]
        if "gpu" in self.processors:
            needed += ["memory.gpu", "links.cpu→gpu", "links.gpu→cpu"]
        for place in needed:
            table, key = place.split(".")
            if key not in getattr(self, table):
                raise ValueError(f"{place} is missing")
        return self

    def value(self) -> Machine:
        return Machine(
            self.name,
            self.memory,
            {name: link.value() for name, link in self.links.items()},
            {tier: processor.value() for tier, processor in self.processors.items()},
            self.compute_loses,
            self.disk_loses,
            self.source,
        )


class _Disk(_Form):
    read: _Link
    write: _Link | None = None
    kv_read: _Rate | None = None
    kv_write: _Rate | None = None

    def value(self, mount: str) -> Disk:
        return Disk(mount, self.read.value(), self.write.value() if self.write else None, self.kv_read, self.kv_write)


class _Host(_Form):
    name: str
    cpu: str
    cores: int = Field(ge=1)
    memory_bytes: _Bytes
    gpu: str | None = None


class _Profile(_Form):
    host: _Host
    measured: AwareDatetime
    form: Literal["long", "short"]
    seconds: _Seconds
    versions: dict[str, str]
    machine: _Machine
    disks: dict[str, _Disk]
    extra: dict[str, float] = {}

    def value(self) -> Profile:
        disks = {mount: disk.value(mount) for mount, disk in self.disks.items()}
        host, machine = Host(**self.host.model_dump()), self.machine.value()
        return Profile(host, self.measured, self.form, self.seconds, self.versions, machine, disks, self.extra)


def profile_path() -> Path:
    """Where this user's profile is kept."""
    return cache_directory() / "profile.json"


def load_profile(path: Path | None = None) -> Profile | None:
    """The stored profile; None where there is none.

    Raises UserError, with file and place, for a file that was changed into something that is no profile.
    """
    path = path or profile_path()
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return _Profile.model_validate_json(text).value()
    except ValidationError as error:
        raise UserError(f"{path}: {_told(error)}; mend it, or measure again: penstock profile --force") from error


def save_profile(profile: Profile, path: Path | None = None) -> Path:
    """Write the profile in one piece; returns where."""
    path = path or profile_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with PartFile(path) as whole:
        whole.file.write(to_json(profile).encode() + b"\n")
    return path


def to_json(profile: Profile) -> str:
    """The profile as it is stored."""
    return _Profile.model_validate(_plain(profile)).model_dump_json(indent=2, exclude_none=True)


def _plain(value: Any) -> Any:
    """A value of dataclasses as mappings and numbers: curves as rates by size, floats in the digits that are known."""
    if isinstance(value, Curve):
        return {int(size) if size == int(size) else size: _rounded(rate) for size, rate in value.points}
    if hasattr(value, "__dataclass_fields__"):
        names = [name for name in value.__dataclass_fields__ if not (isinstance(value, Disk) and name == "mount")]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {key: _plain(held) for key, held in value.items()}
    if isinstance(value, float):
        return None if math.isinf(value) else _rounded(value)
    return value


def _rounded(number: float) -> float:
    return float(f"{number:.{_DIGITS}g}")


def _curve(rates: Mapping[float, float]) -> Curve:
    return Curve(tuple(sorted((float(size), rate) for size, rate in rates.items())))


def _told(error: ValidationError) -> str:
    """The first mistake: where, what is there, what should be."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Input should be ")
    if first["type"] == "json_invalid":
        return f"is not JSON ({message.removeprefix('Invalid JSON: ')})"
    if first["type"] == "missing":
        return f"{place} is missing"
    if first["type"] == "extra_forbidden":
        return f"{place} is not known here"
    if first["type"] == "value_error":
        return f"{place}.{message.removeprefix('Value error, ')}"
    if isinstance(first["input"], Mapping | list):
        return f"{place}: should be {message}"
    text = repr(first["input"])
    given = text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
    return f"{place} is {given}, and should be {message}"
