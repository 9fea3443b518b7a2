"""``penstock models``: what a model weighs and what a budget holds of it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import typer

from penstock.cli import figures, options
from penstock.units import format_bytes

EXAMPLES = """\
Examples:
  penstock models demo
  penstock models Qwen/Qwen3-30B-A3B --cpu-memory 16GiB
"""


def models(
    model: options.Model,
    json_: options.Json = False,
    gpu_memory: options.GpuMemory = None,
    cpu_memory: options.CpuMemory = None,
    disk_memory: options.DiskMemory = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    random_weights: options.RandomWeights = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Show a model's shape, its bytes per page and per token, and what a budget would hold."""
    from penstock.model import describe

    facts = describe(
        model,
        dtype=dtype,
        device=device,
        gpu_memory=gpu_memory,
        cpu_memory=cpu_memory,
        disk_memory=disk_memory,
        random_weights=random_weights,
        trust_remote_code=trust_remote_code,
    )
    if json_:
        print(json.dumps(facts))
        return
    for label, text in _table(facts):
        typer.echo(f"{label:<12}{text}")


def _table(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The lines of the table: label, text."""
    dtype = facts["dtype"]
    yield "model", f"{facts['name']} ({facts['family']})"
    yield (
        "weights",
        f"{format_bytes(facts['bytes'])} in {dtype['stored']}, {_parameters(facts['parameters'])} parameters,"
        f" {figures.count(facts['layers'], 'layer')}",
    )
    yield (
        "pages",
        f"{facts['pages']:,} of {format_bytes(facts['page_bytes_max'])} at most, beside a core of"
        f" {format_bytes(facts['core_bytes'])}",
    )
    yield "computes in", dtype["compute"]
    yield "KV", f"{format_bytes(facts['kv_bytes_per_token'])} per token in {dtype['kv']}"
    if facts.get("state_bytes_per_row"):
        yield "state", f"{format_bytes(facts['state_bytes_per_row'])} per row"
    holds = facts.get("holds") or {}
    if holds.get("budget_bytes"):
        yield "budget", _tiers(holds["budget_bytes"])
    if holds.get("weights_bytes"):
        yield "holds", f"weights {_tiers(holds['weights_bytes'])}"
    if holds.get("rows") is not None:
        yield (
            "" if holds.get("weights_bytes") else "holds",
            f"{figures.count(holds['rows'], 'row')} of {figures.count(holds['row_tokens'], 'token')}",
        )


def _tiers(nbytes: Mapping[str, int]) -> str:
    return " · ".join(f"{tier} {format_bytes(held)}" for tier, held in nbytes.items() if held)


def _parameters(number: int) -> str:
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:,}"
