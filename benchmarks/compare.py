"""Penstock and its peers on one model, under one real memory limit, in one sitting; prints a Markdown table.

Builds what is missing under --work (checkpoint, GGUF files, AirLLM's copy, the peers' environment), measures the bound,
then runs each engine under `memcap` from a cold page cache. Every result is appended to a JSONL file as it comes; the
table is made of all lines of that file that belong to the same job, so a sitting can be continued. A peer runs one
batch of `rows` prompts: a longer job is the same batch over again. Needs root (memory limit, page cache).
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from sitting import (
    HERE,
    PEERS,
    append,
    build,
    capped,
    cell,
    checkpoint,
    machine,
    model_name,
    notes,
    numbers,
    peers_python,
    read_records,
    timed_out,
    words,
)

MOST_LLAMACPP_ROWS = 256


@dataclass(frozen=True)
class Job:
    """What makes two results comparable."""

    model: str
    memory_gib: float
    prompt_len: int
    gen_len: int


@dataclass(frozen=True)
class Run:
    """One engine in one setting."""

    engine: str
    prompts: int
    rows: int | None
    dtype: str
    command: list[str]


def penstock_runs(arguments: argparse.Namespace, model: Path) -> Iterator[Run]:
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    draw = random.Random(0)
    prompts = arguments.work / f"prompts-{arguments.prompts}x{arguments.prompt_len}-of-{vocabulary}.jsonl"
    with prompts.open("w") as file:
        for _ in range(arguments.prompts):
            ids = [draw.randrange(3, vocabulary) for _ in range(arguments.prompt_len)]
            file.write(json.dumps({"prompt_token_ids": ids}) + "\n")
    command = [arguments.penstock, "generate", str(model), "-i", str(prompts), "--json", "--ignore-eos"]
    command += ["--max-tokens", str(arguments.gen_len)]
    command += ["--cpu-memory", arguments.cpu_memory or f"{arguments.memory * 1024:.0f}MiB"]
    if arguments.weight_bits:
        command += ["--weight-bits", str(arguments.weight_bits)]
    command += shlex.split(arguments.penstock_args)
    kind = f"{arguments.weight_bits} bit" if arguments.weight_bits else "auto"
    yield Run("penstock", arguments.prompts, None, kind, command)


def accelerate_runs(arguments: argparse.Namespace, model: Path) -> Iterator[Run]:
    for rows in arguments.rows:
        for dtype in arguments.dtypes:
            command = [
                str(peers_python(arguments.work, arguments.peers_python)),
                str(PEERS / "run_accelerate.py"),
                str(model),
            ]
            command += ["--rows", str(rows), "--dtype", dtype, "--resident", arguments.accelerate_resident]
            command += ["--prompt-len", str(arguments.prompt_len), "--gen-len", str(arguments.gen_len)]
            command += ["--offload-dir", str(arguments.work / "accelerate-offload")]
            yield Run("accelerate", rows, rows, dtype, command)


def airllm_runs(arguments: argparse.Namespace, model: Path) -> Iterator[Run]:
    shards = arguments.work / f"{model.name}.airllm"
    python = peers_python(arguments.work, arguments.peers_python)
    script = [str(python), str(PEERS / "run_airllm.py"), str(model)]
    if not shards.exists():
        part = shards.with_name(shards.name + ".part")
        build([*script, "--split-only", "--shards-dir", part], f"AirLLM's copy {shards}")
        part.rename(shards)
    for rows in arguments.rows:
        for dtype in arguments.dtypes:
            command = [*script, "--shards-dir", str(shards), "--rows", str(rows), "--dtype", dtype]
            command += ["--prompt-len", str(arguments.prompt_len), "--gen-len", str(arguments.gen_len)]
            yield Run("airllm", rows, rows, dtype, command)


def llamacpp_runs(arguments: argparse.Namespace, model: Path) -> Iterator[Run]:
    python = peers_python(arguments.work, arguments.peers_python)
    for kind in arguments.gguf:
        path = arguments.work / f"{model.name}.{kind}.gguf"
        if not path.exists():
            build([python, PEERS / "to_gguf.py", model, path, kind], f"GGUF {path}")
        for rows in sorted({min(rows, MOST_LLAMACPP_ROWS) for rows in arguments.rows}):
            command = [str(python), str(PEERS / "run_llamacpp.py"), str(path), "--rows", str(rows), "--dtype", kind]
            command += ["--prompt-len", str(arguments.prompt_len), "--gen-len", str(arguments.gen_len)]
            yield Run("llamacpp", rows, rows, kind, command)


RUNS = {"penstock": penstock_runs, "accelerate": accelerate_runs, "airllm": airllm_runs, "llamacpp": llamacpp_runs}


def figures(run: Run, job: Job, value: dict) -> dict:
    """An engine's own figures in common words; `problem` where it did not do the whole job."""
    if run.engine == "penstock":
        summary = value["run"]
        value = {
            "rows": round(summary["rows_mean"]),
            "tokens": summary["tokens_out"],
            "seconds": summary["seconds"],
            "tok_s": summary["total_tok_s"],
            "versions": {name: metadata.version(name) for name in ("penstock", "torch", "transformers")},
            "run": summary,
        }
    wanted = run.prompts * job.gen_len
    if value["tokens"] != wanted:
        value["problem"] = f"generated {value['tokens']} tokens of {wanted}"
    return value


def execute(run: Run, job: Job, limit_seconds: float) -> dict:
    """The record of a run, whatever happened."""
    seen, value = capped(run.command, job.memory_gib, limit_seconds)
    record = asdict(job) | asdict(run) | seen
    if timed_out(record):
        record["tok_s_below"] = round(run.prompts * job.gen_len / limit_seconds, 3)
    elif "problem" not in record and value is not None:
        record |= figures(run, job, value)
    return record


def measure_bound(arguments: argparse.Namespace, job: Job, model: Path) -> dict:
    rows = min(arguments.prompts, arguments.bound_rows or max(arguments.rows))
    command = [sys.executable, str(HERE / "bound.py"), "--model", str(model), "--prompts", str(arguments.prompts)]
    command += ["--prompt-len", str(job.prompt_len), "--gen-len", str(job.gen_len), "--rows", str(rows)]
    if arguments.weight_bits:
        command += ["--weight-bits", str(arguments.weight_bits)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return machine() | asdict(job) | {"command": shlex.join(command)} | json.loads(done.stdout)


def bound_kind(record: dict) -> str:
    """All prompts together, or rows that come and go."""
    return "at_once" if record["rows"] >= record["prompts"] else "mixed"


def table(records: list[dict]) -> str:
    """Markdown: tok/s, ratio to accelerate's best, share of the bound, memory."""
    rates = [r["tok_s"] for r in records if r["engine"] == "accelerate" and "tok_s" in r and "problem" not in r]
    best = max(rates, default=None)
    limits = [r for r in records if r["engine"] == "bound"]
    bound = statistics.median(r[bound_kind(r)]["tok_s"] for r in limits) if limits else None
    lines = [
        "| engine | dtype | prompts | rows | tok/s | of accelerate's best | of the bound | engine s | wall s "
        "| peak MiB | limit hits | note |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for r in records:
        if r["engine"] == "bound":
            continue
        rate = None if "problem" in r else r["tok_s"]
        shown = f"< {r['tok_s_below']:.2f}" if "tok_s_below" in r else cell(rate, ".2f")
        lines.append(
            f"| {r['engine']} | {r['dtype']} | {r['prompts']} | {r['rows'] or ''} | {shown} "
            f"| {cell(rate / best if rate and best else None, '.2f')} "
            f"| {cell(rate / bound if rate and bound else None, '.0%')} "
            f"| {cell(r.get('seconds'), '.0f')} | {cell(r['wall_seconds'], '.0f')} "
            f"| {r.get('peak_mib', '')} | {r.get('limit_hits', '')} | {'; '.join(notes(r))} |"
        )
    for r in limits:
        kind, disk = bound_kind(r), r["disk_bytes_per_second"]["together"] / 1e9
        lines.append(
            f"\nBound ({kind.replace('_', ' ')}, {r['rows']} rows): {r[kind]['tok_s']:.2f} tok/s at "
            f"{r['flops'][r['dtype']] / 1e9:.0f} GFLOP/s in {r['dtype']} and {disk:.2f} GB/s from disk beside it."
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work", type=Path, required=True, help="directory for checkpoints, copies and results")
    add("--shape", default="llama3b", help="a shape of make_model.py")
    add("--layers", type=int, help="another number of layers (for a smoke run)")
    add("--memory", type=float, default=3.0, help="GiB of the limit")
    add("--engines", type=words, default=list(RUNS), help="penstock,accelerate,airllm,llamacpp")
    add("--prompts", type=int, default=256, help="prompts of Penstock's job and of the bound")
    add("--prompt-len", type=int, default=32)
    add("--gen-len", type=int, default=32)
    add("--rows", type=numbers, default=[128, 256], help="rows of a peer's batch, one run each")
    add("--dtypes", type=words, default=["bfloat16", "float32"], help="of accelerate and AirLLM, one run each")
    add("--weight-bits", type=int, choices=[4, 8], help="of Penstock's layers, and of the bound's")
    add("--gguf", type=words, default=["bf16", "f16"], help="types of llama.cpp's file, one run each")
    add("--accelerate-resident", default="0.5GiB", help="weights accelerate keeps in memory")
    add("--penstock", default=str(Path(sys.executable).with_name("penstock")), help="the penstock command")
    add("--penstock-args", default="", help="further arguments of penstock, in one string")
    add("--cpu-memory", help="Penstock's own promise (default: the limit)")
    add("--peers-python", type=Path, help="interpreter with the peers (default: one built under --work)")
    add("--bound-rows", type=int, help="rows in flight of the mixed bound (default: the most of --rows)")
    add("--no-bound", action="store_true", help="do not measure the bound")
    add("--time-limit", type=float, default=3600, help="seconds of one run, reported where reached")
    add("--results", type=Path, help="JSONL to append to (default: a new one under --work)")
    add("--table-only", action="store_true", help="print the table of --results and run nothing")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.engines) - set(RUNS))
    if unknown:
        parser.error(f"no engine {', '.join(unknown)}; there are {', '.join(RUNS)}")
    if arguments.table_only and not arguments.results:
        parser.error("--table-only needs --results")
    if "penstock" in arguments.engines and not arguments.table_only and not shutil.which(arguments.penstock):
        parser.error(f"no command {arguments.penstock}; name it with --penstock or leave it out of --engines")
    return arguments


def main() -> None:
    arguments = parse()
    job = Job(model_name(arguments.shape, arguments.layers), arguments.memory, arguments.prompt_len, arguments.gen_len)
    if not arguments.table_only:
        arguments.work.mkdir(parents=True, exist_ok=True)
        results = arguments.results or arguments.work / f"results-{datetime.now(UTC):%Y%m%d-%H%M%S}.jsonl"
        arguments.results = results
        model = checkpoint(arguments.work, arguments.shape, arguments.layers)
        runs = [run for engine in arguments.engines for run in RUNS[engine](arguments, model)]
        if not arguments.no_bound:
            append(results, measure_bound(arguments, job, model))
        for run in runs:
            print(f"running {run.engine} {run.dtype}, {run.prompts} prompts", file=sys.stderr)
            append(results, execute(run, job, arguments.time_limit))
        print(f"results: {results}", file=sys.stderr)
    print(table(read_records(arguments.results, asdict(job))))


if __name__ == "__main__":
    main()
