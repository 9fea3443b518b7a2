"""Pages that a run reads from the page cache: found there, or first written, and refused where none can be."""

from collections.abc import Callable
from dataclasses import replace
from importlib import metadata

from penstock.engine.build import Blueprint
from penstock.errors import UserError
from penstock.model import page_cache
from penstock.quant.forms import named
from penstock.quant.grouped import ROUNDING
from penstock.units import format_bytes

Progress = Callable[[int, int], None]


def cache_pages(plan: Blueprint, disk_budget: int | None, progress: Progress | None) -> Blueprint:
    """The blueprint with converted pages found in, or first written to, the page cache where that fits the budget.

    Raises UserError where it does not fit and weights are packed: those run from the cache alone.
    """
    missing = [page for page in plan.layout.pages if page.extents is None]
    if not missing:
        return plan
    check_packed(plan, disk_budget)
    path, kind = plan.source.path, plan.source.kind
    files = [path] if kind == "gguf" else sorted(path.glob("*.safetensors")) if kind == "safetensors" else []
    converters = [f"{name} {metadata.version(name)}" for name in ("transformers", "gguf") if files]
    packed = any(named(piece.dtype) for page in missing for piece in page.slices)
    converters += [f"rounding {ROUNDING}"] if packed else []
    converters += [str(plan.source.quantized)] if plan.source.quantized else []
    key = page_cache.cache_key(files, missing, kind, *converters)
    about = {"model": plan.source.name, "stored": plan.precision.name}
    cached = page_cache.open_or_build(
        key, missing, plan.sources, progress=progress, disk_budget=disk_budget, about=about
    )
    if cached is None:
        if plan.packed_bytes:
            needed = format_bytes(plan.packed_bytes)
            raise UserError(f"packed weights take {needed} of page cache, and the disk has no room: set PENSTOCK_CACHE")
        return plan
    by_index = {page.index: page for page in cached.pages}
    pages = tuple(by_index.get(page.index, page) for page in plan.layout.pages)
    return replace(plan, layout=replace(plan.layout, pages=pages), cached_bytes=cached.nbytes, lease=cached.lease)


def check_packed(plan: Blueprint, disk_budget: int | None) -> None:
    """UserError where packed pages, which are read from the page cache alone, exceed a budget of the disk."""
    if disk_budget is not None and plan.packed_bytes > disk_budget:
        needed = format_bytes(plan.packed_bytes)
        raise UserError(
            f"packed weights take {needed} of page cache on disk, and --disk-memory is {format_bytes(disk_budget)}: "
            "raise it, or leave the weights as they are"
        )
