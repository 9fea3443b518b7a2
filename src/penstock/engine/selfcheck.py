"""Whether this engine runs a model exactly: decided on a tiny model made from the checkpoint's own config.

The tiny model's logits are compared with transformers' own, row by row, below, across and above every length at which
its behaviour changes. What differs, or cannot be tried, is refused by name.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers

from penstock.directories import cache_directory
from penstock.engine.build import Blueprint, assemble, blueprint
from penstock.engine.engine import Engine
from penstock.engine.tiny_model import FAILURES, Logits, build_tiny, own_logits, prompts_for, reason_of, tiny_config
from penstock.errors import UserError
from penstock.memory.clock import Clock
from penstock.memory.device import CpuDevice
from penstock.model.precision import Precision
from penstock.model.source import Source
from penstock.part_file import PartFile
from penstock.plan.policy import Policy, Shares, Tier
from penstock.plan.types import Placement
from penstock.sampling import SamplingParams, resolve
from penstock.schedule.demand import Demand

_TOLERANCE = 1e-4  # of the largest logit; float32 rounding moves logits by about 7e-6 with the batch shape
_STEPS = 6  # tokens generated per row
_PAGE_BYTES = 16 << 10
_PRECISION = Precision(torch.float32, torch.float32, torch.float32)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model runs exactly, why not, how long it took to find out, and the largest relative difference seen."""

    exact: bool
    reason: str | None
    seconds: float
    difference: float | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """A parameter source in memory."""

    value: torch.Tensor
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def load(self, start: int | None = None, stop: int | None = None) -> torch.Tensor:
        return self.value[start:stop].clone() if self.value.dim() else self.value.clone()


class _Differs(RuntimeError):
    """The flat path's logits are not the model's own."""


def check(source: Source, *, trust_remote_code: bool = False) -> Verdict:
    """Try a tiny model of the source's config. Takes seconds; leaves torch's random state and the disk as they were."""
    started = time.perf_counter()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            difference = _compare(source, trust_remote_code)
    except (UserError, *FAILURES) as error:
        return Verdict(False, reason_of(error), time.perf_counter() - started)
    return Verdict(True, None, time.perf_counter() - started, difference)


def remembered(source: Source, *, trust_remote_code: bool, first: Callable[[], None]) -> Verdict:
    """The verdict of an earlier check of this config with these versions; else one made now, after ``first()``."""
    path = cache_directory() / "checks" / f"{_key(source.config)}.json"
    try:
        return Verdict(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        first()  # not there, or not readable: both mean that it has to be made
    verdict = check(source, trust_remote_code=trust_remote_code)
    _keep(path, verdict)
    return verdict


def require_exact(source: Source, *, trust_remote_code: bool, first: Callable[[], None]) -> None:
    """Raise UserError, in one line, for a model whose tokens would not be its own."""
    verdict = remembered(source, trust_remote_code=trust_remote_code, first=first)
    if not verdict.exact:
        raise UserError(
            f"{source.config.model_type} models are refused: {verdict.reason} (--unchecked runs them all the same)"
        )


def _compare(source: Source, trust_remote_code: bool) -> float:
    """The largest relative difference of logits; raises _Differs above the tolerance."""
    torch.manual_seed(0)
    config = tiny_config(source.config, trust_remote_code)
    model = build_tiny(config, trust_remote_code)
    prompts = prompts_for(config, _STEPS)
    want = [own_logits(model, prompt, _STEPS) for prompt in prompts]
    _guard(model, prompts[-1], want[-1])
    values: dict[int, Held] = {}
    held = {n: values.setdefault(id(p), Held(p.detach())) for n, p in model.state_dict(keep_vars=True).items()}
    with _engine(replace(source, config=config, kind="random"), held, prompts, trust_remote_code) as engine:
        got = _flat(engine, prompts)
    return max(_row_difference(*both) for both in zip(prompts, want, got, strict=True))


def _guard(model: Any, prompt: Sequence[int], own: Logits) -> None:
    """Raise where the tiny model does not look at the order of its prompt: then equal logits would prove nothing."""
    if len(prompt) <= 2:
        return
    turned = own_logits(model, [*reversed(prompt[:-1]), prompt[-1]], 1)
    if float((turned[0] - own[0]).abs().max()) < 10 * _TOLERANCE * float(own[0].abs().max()):
        raise _Differs("a small one with random weights says the same whatever the order of its prompt")


@contextmanager
def _engine(
    source: Source, held: Mapping[str, Held], prompts: Sequence[Sequence[int]], remote: bool
) -> Iterator[Engine]:
    """The engine itself over the tiny model: every page streams, calls are short, fewer rows run than there are."""
    plan = blueprint(source, _PRECISION, trust_remote_code=remote, page_bytes=_PAGE_BYTES, sources=held)
    disk, cpu = Shares(disk=1.0), Shares(cpu=1.0)
    policy = Policy(disk, cpu, cpu, rows=4, sweep_tokens=24, batch_tokens=8, slots=2)
    kv_bytes = _kv_bytes(plan, max(map(len, prompts)) + _STEPS, len(prompts))
    homes: list[Tier] = ["disk"] * len(plan.layout.pages)
    placement = Placement(policy, tuple(homes), {"cpu": kv_bytes}, 0, {})
    device = CpuDevice()
    engine = assemble(plan, placement, device, Clock(compute_lane="cpu-compute"), None)
    try:
        yield engine
    finally:
        engine.close()
        device.close()


def _kv_bytes(plan: Blueprint, tokens: int, rows: int) -> int:
    demand = Demand(plan.specs, plan.kv.tokens, "cpu", whole=True)
    return rows * (demand.peak(tokens, "cpu").get("cpu", 0) + 2 * demand.stride_bytes) + 4096


def _flat(engine: Engine, prompts: Sequence[Sequence[int]]) -> list[Logits]:
    """Every row's logits per step from the engine; one row is dropped on its way and computed again."""
    greedy = resolve(SamplingParams(temperature=0.0, max_tokens=_STEPS, ignore_eos=True), {})
    rows = [engine.add(str(i), prompt, greedy) for i, prompt in enumerate(prompts)]
    seen: dict[int, Logits] = {row: [] for row in rows}
    engine.observe = lambda row, position, logits: seen[row].append(logits.float().cpu().clone())
    dropped = False
    while engine.sweep() is not None:
        if not dropped and len(seen[rows[0]]) == _STEPS // 2:
            engine.scheduler.recompute(rows[0])
            dropped = True
    return [seen[row] for row in rows]


def _row_difference(prompt: Sequence[int], want: Logits, got: Logits) -> float:
    """The largest relative difference of a row's steps, up to where its tokens part within the tolerance."""
    largest = 0.0
    for step, (own, flat) in enumerate(zip(want, got, strict=True)):
        scale = float(own.abs().max()) or 1.0
        difference = float((own - flat).abs().max()) / scale
        if not difference <= _TOLERANCE:
            at = f"a small one, {len(prompt)} tokens in, step {step + 1}"
            raise _Differs(f"their logits differ by {difference:.1e} from transformers' own ({at})")
        largest = max(largest, difference)
        if int(own.argmax()) != int(flat.argmax()):
            break  # a tie within rounding: the rows go on with different tokens
    return largest


def _key(config: Any) -> str:
    """A name for a config and everything else that decides its verdict."""
    said = {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    versions = [metadata.version("penstock"), transformers.__version__, torch.__version__]
    text = json.dumps([said, versions], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _keep(path: Path, verdict: Verdict) -> None:
    """Write a verdict whole or not at all; where the cache cannot be written, it is found out again next time."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with PartFile(path) as whole:
            whole.file.write(json.dumps(asdict(verdict)).encode())
