"""What happened in a run and why it took that long, in a few lines."""

from collections.abc import Iterator, Mapping
from typing import Any

from penstock.cli import figures
from penstock.units import format_bytes, format_seconds

TIERS = ("gpu", "cpu", "disk")


def summary(run: Mapping[str, Any], table: bool = False) -> str:
    """The text after the answers: three sentences for one prompt, a small table for several, or in any case.

    run: ``LLM.last_run``.
    """
    return "\n".join(_sentences(run) if run["prompts"] == 1 and not table else _table(run))


def _sentences(run: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{figures.count(run['tokens_out'], 'token')} in {format_seconds(run['seconds'])}"
        f" · {figures.speed(run['total_tok_s'])} tok/s"
    )
    happened = [*_streamed(run), *_waited(run)]
    if happened:
        yield "; ".join(happened)
    yield f"memory: {_memory(run, ' at most')}"


def _streamed(run: Mapping[str, Any]) -> Iterator[str]:
    """How much of the weights came from disk, how often and how fast."""
    weights = run["placed_bytes"]["weights"]
    streamed, total = weights.get("disk", 0), sum(weights.values())
    if not streamed:
        return
    part = streamed / total
    words = "all" if part > 0.995 else "half" if abs(part - 0.5) < 0.015 else figures.share(part)
    link = run["links"].get("disk_to_cpu", {"bytes": 0, "seconds": 0})
    sentence = f"{words} of the weights ({format_bytes(streamed)}) streamed from disk"
    if run.get("sweeps"):
        sentence += f" {figures.count(run['sweeps'], 'time')}"
    if link["seconds"]:
        sentence += f" at {figures.bandwidth(link['bytes'], link['seconds'])}"
    yield sentence


def _waited(run: Mapping[str, Any]) -> Iterator[str]:
    lane, part = max((run.get("waits") or {"": 0.0}).items(), key=lambda item: item[1])
    if part >= 0.01:
        yield f"waiting for {figures.link(lane)} {figures.share(part)} of the time"


def _table(run: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{figures.count(run['prompts'], 'prompt')} · {run['tokens_in']:,} tokens in"
        f" · {run['tokens_out']:,} out · {format_seconds(run['seconds'])}"
    )
    planned = run.get("predicted")
    lines = {
        "throughput": f"{figures.speed(run['total_tok_s'])} tok/s in all · prefill"
        f" {figures.speed(run['prefill_tok_s'])} · decode {figures.speed(run['decode_tok_s'])}",
        "planned": _planned(planned, run) if planned else "",
        "sweeps": _sweeps(run),
        "busy": _shares(run["lanes"]),
        "waited for": _shares(run.get("waits") or {}),
        "moved": _moved(run["links"]),
        "placed": _placed(run["placed_bytes"]),
        "memory": _memory(run),
    }
    for label, text in lines.items():
        if text:
            yield f"{label:<12}{text}"


def _planned(planned: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """The prediction of the same figures, and how far the run was from it."""
    off = run["total_tok_s"] / planned["total_tok_s"] - 1 if planned["total_tok_s"] else 0.0
    rates = (
        f"{figures.speed(planned['total_tok_s'])} tok/s ({off:+.0%} was measured) · prefill"
        f" {figures.speed(planned['prefill_tok_s'])} · decode {figures.speed(planned['decode_tok_s'])}"
    )
    lanes = _shares(planned["lanes"])
    return f"{rates} · {lanes}" if lanes else rates


def _sweeps(run: Mapping[str, Any]) -> str:
    mean = figures.speed(run["rows_mean"])
    rows = f"{mean} row{'' if mean == '1' else 's'} on average"
    return f"{run['sweeps']:,}, with {rows}" if run.get("sweeps") else rows


def _shares(lanes: Mapping[str, float]) -> str:
    ordered = sorted(lanes.items(), key=lambda item: -item[1])
    return " · ".join(f"{figures.link(lane)} {figures.share(part)}" for lane, part in ordered if part >= 0.005)


def _moved(links: Mapping[str, Mapping[str, Any]]) -> str:
    return " · ".join(
        f"{figures.link(key)} {format_bytes(link['bytes'])} at {figures.bandwidth(link['bytes'], link['seconds'])}"
        for key, link in links.items()
        if link["bytes"]
    )


def _placed(placed: Mapping[str, Mapping[str, int]]) -> str:
    groups = []
    for what, label in (("weights", "weights"), ("kv", "KV"), ("activations", "activations")):
        tiers = placed.get(what, {})
        there = " + ".join(f"{tier} {format_bytes(tiers[tier])}" for tier in TIERS if tiers.get(tier))
        if there:
            groups.append(f"{label} {there}")
    return " · ".join(groups)


def _memory(run: Mapping[str, Any], at_most: str = "") -> str:
    """Peak of each tier of its budget; the tier goes unnamed where only the cpu holds anything."""
    peaks = {tier: run["peak_bytes"].get(tier, 0) for tier in TIERS}
    used = [tier for tier in TIERS if peaks[tier]]
    parts = []
    for tier in used:
        budget = run["budget_bytes"].get(tier)
        name = "" if used == ["cpu"] and at_most else f"{tier} "
        limit = f"{',' if at_most else ''} of {format_bytes(budget)} allowed" if budget else ""
        parts.append(f"{name}{format_bytes(peaks[tier])}{at_most}{limit}")
    return " · ".join(parts)
