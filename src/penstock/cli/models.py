"""``penstock models``: what a model weighs and what a budget holds of it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import typer

from penstock.asked import check_here
from penstock.cli import figures, options
from penstock.plan.types import Asked
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
    weight_bits: options.FixedWeightBits = None,
    lm_head_bits: options.LmHeadBits = None,
    kv_bits: options.FixedKvBits = None,
    device: options.Device = "auto",
    random_weights: options.RandomWeights = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Show a model's shape, its bytes per page and per token, and what a budget would hold."""
    check_here(Asked(), {"gpu": gpu_memory}, device)

    from penstock.describe import describe

    facts = describe(
        model,
        dtype=dtype,
        weight_bits=weight_bits,
        lm_head_bits=lm_head_bits,
        kv_bits=kv_bits,
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
    context = f", context of {figures.count(facts['context'], 'token')}" if facts["context"] else ""
    yield "model", f"{facts['name']} ({facts['family']}){context}"
    yield (
        "weights",
        f"{format_bytes(facts['bytes'])} in {dtype['stored']}, {_parameters(facts['parameters'])} parameters,"
        f" {figures.count(facts['layers'], 'layer')}",
    )
    if facts["converted_bytes"]:
        yield "", f"{format_bytes(facts['converted_bytes'])} of them converted once, into the page cache on disk"
    yield (
        "pages",
        f"{facts['pages']:,} of {format_bytes(facts['page_bytes_max'])} at most, beside a core of"
        f" {format_bytes(facts['core_bytes'])}",
    )
    yield "computes in", dtype["compute"]
    yield "KV", f"{format_bytes(facts['kv_bytes_per_token'])} per token in {dtype['kv']}"
    if facts["open_kv_bytes_per_row"]:
        yield "", f"and {format_bytes(facts['open_kv_bytes_per_row'])} per row for its newest block, not packed"
    if facts["state_bytes_per_row"]:
        yield "state", f"{format_bytes(facts['state_bytes_per_row'])} per row"
    holds = facts["holds"]
    yield "budget", _tiers(holds["budget_bytes"])
    if "refusal" in holds:
        yield "holds", f"nothing: {holds['refusal']}"
        return
    yield "holds", _resting(holds["weights_bytes"])
    job = f"{figures.count(holds['prompts'], 'prompt')} of {holds['prompt_tokens']} + {holds['new_tokens']} tokens"
    yield "rows", f"{holds['rows']:,} at once, in a job of {job}"


def _resting(nbytes: Mapping[str, int]) -> str:
    """Where weights rest: ``71 % of the weights in cpu memory, 29 % streamed from disk``."""
    total = sum(nbytes.values()) or 1
    parts = [
        f"{figures.share(held / total)} {'streamed from disk' if tier == 'disk' else f'in {tier} memory'}"
        for tier, held in nbytes.items()
    ]
    return "weights " + ", ".join(parts)


def _tiers(nbytes: Mapping[str, int]) -> str:
    return " · ".join(f"{tier} {format_bytes(held)}" for tier, held in nbytes.items() if held)


def _parameters(number: int) -> str:
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:,}"
