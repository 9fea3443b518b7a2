"""The Markdown table of a ragged job's records."""

from __future__ import annotations

from collections.abc import Iterator

from ragged_job import Load
from sitting import cell, notes


def best_peer(records: list[dict]) -> float | None:
    return max(
        (r["tok_s"] for r in records if r["engine"] not in ("penstock", "bound") and is_whole(r)),
        default=None,
    )


def is_whole(record: dict) -> bool:
    return "tok_s" in record and "problem" not in record


def part(record: dict) -> list[str]:
    """How much of the job a run did, and how like the whole that is."""
    if record.get("part", "all") == "all":
        return []
    if "tokens_per_sweep" not in record:
        return [record["part"]]
    like = record["tokens_per_sweep"] / record["tokens_per_sweep_of_all"]
    return [f"{record['part']}, with {like:.0%} of the tokens per sweep of all"]


def row(record: dict, best: float | None, bounds: dict[str, float]) -> str:
    """One line of the table. bounds: tok/s by kind."""
    whole = is_whole(record)
    rate = record["tok_s"] if whole else None
    shown = f"< {record['tok_s_below']:.2f}" if "tok_s_below" in record else cell(rate, ".2f")
    of_bound = {kind: rate / bound for kind, bound in bounds.items() if rate}
    made = of_bound.get("made") if record["engine"] == "penstock" else None
    said = part(record) + notes(record)
    read = record["read_bytes"] / record["tokens"] / 1e6 if whole else None
    return (
        f"| {record['engine']} | {record['dtype']} | {record['rows'] or ''} | {cell(record.get('rows_mean'), '.0f')} "
        f"| {shown} | {cell(rate / best if rate and best else None, '.2f')} | {cell(read, '.0f')} "
        f"| {cell(of_bound.get('ideal'), '.0%')} | {cell(made, '.0%')} "
        f"| {cell(record.get('seconds'), '.0f')} | {cell(record['wall_seconds'], '.0f')} "
        f"| {record.get('peak_mib', '')} | {record.get('limit_hits', '')} | {'; '.join(said)} |"
    )


def table(records: list[dict], load: Load) -> str:
    """Markdown: rows in flight, tok/s, ratio to the best peer, bytes read per token, share of the bound, memory."""
    limits = [r for r in records if r["engine"] == "bound"]
    bounds = {kind: limits[-1][kind]["tok_s"] for kind in ("ideal", "made") if limits and kind in limits[-1]}
    best = best_peer(records)
    lines = [
        f"{load.requests} requests, {load.prompt_tokens:,} tokens in ({load.shared} of each shared), "
        f"{load.outputs:,} out, the longest output {load.longest_output}.\n",
        "| engine | dtype | rows asked | rows in flight | tok/s | of the best peer | MB read per token | of the bound "
        "| of that for its sweeps | engine s | wall s | peak MiB | limit hits | note |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    lines += [row(record, best, bounds) for record in records if record["engine"] != "bound"]
    lines += [told for one in limits[-1:] for told in told_bound(one)]
    return "\n".join(lines)


def told_bound(record: dict) -> Iterator[str]:
    disk, flops = record["disk_bytes_per_second"]["together"] / 1e9, record["flops"][record["dtype"]] / 1e9
    names = {"ideal": f"{record['rows']} rows in flight", "made": "the sweeps that Penstock made"}
    for kind, name in names.items():
        if kind in record:
            found, sweep = record[kind], record[kind]["sweep"]
            yield (
                f"\nBound for {name}: {found['tok_s']:.2f} tok/s, {found['sweeps']} sweeps of {sweep['tokens']} tokens "
                f"({sweep['gemm_seconds']:.2f} s of GEMM at {flops:.0f} GFLOP/s in {record['dtype']}, "
                f"{sweep['page_seconds']:.2f} s of pages at {disk:.2f} GB/s)."
            )
