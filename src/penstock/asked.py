"""What a person fixed of placement and cut, checked: keywords of ``LLM`` that mirror flags."""

from collections.abc import Mapping
from os import PathLike

from penstock.errors import UserError
from penstock.plan.checks import check_asked, check_host, check_placed
from penstock.plan.policy import Shares, Tier
from penstock.plan.shares import parse_shares
from penstock.plan.types import Asked, Placement

Shared = str | Mapping[str, float] | None
AskedMemory = Mapping[Tier, str | int | None]

ATTENTION: Mapping[str | None, Tier | None] = {None: None, "auto": None, "cpu": "cpu", "gpu": "gpu"}


def check_kinds(words: Mapping[str, object], paths: Mapping[str, object]) -> None:
    """Raise UserError for a keyword that is no text, or no text and no path; only ``model`` may not be None."""
    for name, value in {**words, **paths}.items():
        left_out = value is None and name != "model"
        if not (left_out or isinstance(value, str) or (name in paths and isinstance(value, PathLike))):
            raise UserError(f"{name}={value!r}: give {'a path' if name in paths else 'text'}")


def asked_for(
    *,
    weights: Shared,
    kv: Shared,
    activations: Shared,
    rows: int | None,
    sweep_tokens: int | None,
    batch_tokens: int | None,
    slots: int | None,
    batch_size: int | None,
    num_batches: int | None,
    attention: str | None = None,
    compute_cpu_layers: int | str | None = None,
) -> Asked:
    """The wish that keywords make; UserError for what is none, and for parts of it that contradict each other."""
    if attention not in ATTENTION:
        raise UserError(f"--attention {attention}: there are {', '.join(name for name in ATTENTION if name)}")
    asked = Asked(
        weights=_shares(weights, "--weights"),
        kv=_shares(kv, "--kv"),
        activations=_shares(activations, "--activations"),
        rows=_count(rows, "--rows"),
        sweep_tokens=_count(sweep_tokens, "--sweep-tokens"),
        batch_tokens=_count(batch_tokens, "--batch-tokens"),
        slots=_count(slots, "--slots"),
        batch_size=_count(batch_size, "--batch-size"),
        num_batches=_count(num_batches, "--num-batches"),
        attention=ATTENTION[attention],
        cpu_layers=_layers(compute_cpu_layers),
    )
    check_asked(asked)
    return asked


def check_here(asked: Asked, memory: AskedMemory, device: str, placed: Placement | None = None) -> None:
    """Raise UserError where a gpu is asked for, in any way, that this host does not have.

    memory: budgets by tier. device: what is to compute, by name. placed: a saved plan's. torch is imported only to look
    for a gpu.
    """
    planned = placed is not None and placed.needs_gpu
    if device != "cuda" and memory.get("gpu") is None and not asked.needs_gpu and not planned:
        return
    if device == "cpu":
        compute: Tier = "cpu"
    else:
        from penstock.memory.device import compute_tier

        compute = compute_tier(device)
    check_host(asked, [tier for tier, size in memory.items() if size is not None], compute)
    if placed is not None:
        check_placed(placed, compute)


def _layers(given: int | str | None) -> int | None:
    """Decoder layers that the cpu is to compute beside a gpu, None for ``auto``; none where nobody said."""
    if given is None or given == "auto":
        return 0 if given is None else None
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        raise UserError(f"--compute-cpu-layers {given}: a whole number, or auto")
    return given


def _shares(given: Shared, flag: str) -> Shares | None:
    return None if given is None else parse_shares(given, flag)


def _count(value: int | None, flag: str) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UserError(f"{flag} {value}: a whole number of at least 1")
    return value
