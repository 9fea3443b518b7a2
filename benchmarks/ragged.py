"""A ragged batch job on Penstock and its peers, under one real memory limit, in one sitting; prints a Markdown table.

256 requests: prompts of 110 to 512 tokens, the first 100 the same for all (so none is shorter than that), about 200 in
the mean; outputs of 16 to 256, about 80 in the mean and forced; both log-normal, clipped, from a seed. Builds what is
missing under --work, then runs each engine under `memcap` from a cold page cache: Penstock, the bound for the rows that
its KV was room for (ragged_bound.py has the formula), accelerate in static batches, transformers' continuous batching.
Every result is appended to a JSONL file as it comes; the table is made of all its lines that belong to the same job, so
a sitting can be continued. Needs root (memory limit, page cache).
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from ragged_job import Lengths, Load, draw_requests, kv_token_bytes, write
from ragged_table import is_whole, table
from sitting import (
    HERE,
    PEERS,
    append,
    capped,
    checkpoint,
    machine,
    model_name,
    numbers,
    peers_python,
    read_records,
    timed_out,
    words,
)

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Job:
    """What makes two results comparable."""

    job: str
    model: str
    memory_gib: float


@dataclass(frozen=True)
class Run:
    """One engine in one setting."""

    engine: str
    rows: int | None
    dtype: str
    command: list[str]


@dataclass(frozen=True)
class Sitting:
    """What is run: the job with its files, and where results go."""

    job: Job
    load: Load
    model: Path
    source: Path
    arguments: argparse.Namespace

    @property
    def results(self) -> Path:
        path: Path = self.arguments.results
        return path

    def records(self) -> list[dict]:
        return read_records(self.results, asdict(self.job))


def penstock_runs(sitting: Sitting) -> Iterator[Run]:
    arguments = sitting.arguments
    out = sitting.source.with_name(f"answers-to-{sitting.source.name}")
    command = [arguments.penstock, "run-batch", str(sitting.model), "-i", str(sitting.source), "-o", str(out)]
    command += ["--overwrite", "--json", "--ignore-eos", "--temperature", "0"]
    command += ["--cpu-memory", arguments.cpu_memory or f"{arguments.memory * 1024:.0f}MiB"]
    command += shlex.split(arguments.penstock_args)
    yield Run("penstock", None, "auto", command)


def peer_runs(sitting: Sitting, engine: str, script: str, dtypes: list[str], further: list[str]) -> Iterator[Run]:
    arguments = sitting.arguments
    python = peers_python(arguments.work, arguments.peers_python)
    for rows in arguments.rows:
        for dtype in dtypes:
            command = [str(python), str(PEERS / script), str(sitting.model), str(sitting.source)]
            command += ["--rows", str(rows), "--dtype", dtype]
            command += ["--offload-dir", str(arguments.work / "accelerate-offload"), *further]
            yield Run(engine, rows, dtype, command)


def accelerate_runs(sitting: Sitting) -> Iterator[Run]:
    arguments = sitting.arguments
    further = ["--part", str(arguments.peer_part), "--prefill-chunk", str(arguments.prefill_chunk)]
    further += ["--resident", arguments.accelerate_resident]
    yield from peer_runs(sitting, "accelerate", "run_static_batches.py", arguments.dtypes, further)


def generate_batch_runs(sitting: Sitting) -> Iterator[Run]:
    further = ["--seconds", str(sitting.arguments.peer_seconds)]
    yield from peer_runs(sitting, "generate_batch", "run_continuous.py", sitting.arguments.dtypes, further)


RUNS = {"penstock": penstock_runs, "accelerate": accelerate_runs, "generate_batch": generate_batch_runs}


def penstock_figures(summary: dict, load: Load) -> dict:
    """Penstock's own summary in the words that peers use."""
    found = {
        "tokens": summary["tokens_out"],
        "wanted": load.outputs,
        "part": "all",
        "seconds": summary["seconds"],
        "tok_s": summary["total_tok_s"],
        "sweeps": summary["sweeps"],
        "rows_mean": summary["rows_mean"],
        "read_bytes": summary["links"]["disk_to_cpu"]["bytes"],
        "versions": {name: metadata.version(name) for name in ("penstock", "torch", "transformers")},
        "run": summary,
    }
    if summary["errors"]:
        found["problem"] = f"{summary['errors']} of {load.requests} lines have an error"
    return found


def execute(run: Run, sitting: Sitting) -> dict:
    """The record of a run, whatever happened."""
    arguments = sitting.arguments
    seen, value = capped(run.command, arguments.memory, arguments.time_limit, cold=not arguments.warm_cache)
    record = asdict(sitting.job) | asdict(run) | {"load": asdict(sitting.load)} | seen
    if value is None or ("run" in value and "sweeps" not in value["run"]):  # the latter: stopped before the first one
        return record
    # what a peer said before it was stopped is what it was to do
    record |= penstock_figures(value["run"], sitting.load) if run.engine == "penstock" else value
    if timed_out(seen) and "wanted" in value:
        record["tok_s_below"] = round(value["wanted"] / arguments.time_limit, 3)
    if "problem" in seen:
        record["problem"] = seen["problem"]
    if "problem" not in record and record["tokens"] != record["wanted"]:
        record["problem"] = f"generated {record['tokens']} tokens of {record['wanted']}"
    return record


def kv_rows(record: dict, sitting: Sitting) -> int:
    """Rows in flight for which the KV that Penstock held when it held most is room."""
    summary = record["run"]
    config = json.loads((sitting.model / "config.json").read_text())
    kv_dtype = summary["settings"]["dtype"].split("/")[-1]
    held = sum(summary["placed_bytes"]["kv"].values())
    return sitting.load.rows(held, kv_token_bytes(config, BYTES[kv_dtype]))


def measure_bound(sitting: Sitting) -> dict:
    """For the rows asked for, or for the last Penstock run of this job: its rows, sweeps and resident pages."""
    done = [r for r in sitting.records() if r["engine"] == "penstock" and is_whole(r)]
    asked = sitting.arguments.bound_rows
    if not done and not asked:
        raise SystemExit("ragged.py: no Penstock run of this job to take rows from; name them with --bound-rows")
    command = [sys.executable, str(HERE / "ragged_bound.py"), "--model", str(sitting.model)]
    command += ["--load", json.dumps(asdict(sitting.load))]
    command += ["--rows", str(asked or kv_rows(done[-1], sitting))]
    if done:
        resident = done[-1]["run"]["placed_bytes"]["weights"]["cpu"]
        command += ["--sweeps", str(done[-1]["sweeps"]), "--resident-bytes", str(resident)]
    command += shlex.split(sitting.arguments.bound_args)
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return machine() | asdict(sitting.job) | {"command": shlex.join(command)} | json.loads(said.stdout)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work", type=Path, required=True, help="directory for checkpoints, the job and results")
    add("--shape", default="llama1b", help="a shape of make_model.py")
    add("--layers", type=int, help="another number of layers (for a smoke run)")
    add("--memory", type=float, default=2.0, help="GiB of the limit")
    add("--engines", type=words, default=list(RUNS), help="penstock,accelerate,generate_batch")
    add("--requests", type=int, default=256)
    add("--prompts", type=Lengths.parse, default=Lengths(110, 512, 200), help="tokens: LEAST,MOST,MEAN")
    add("--outputs", type=Lengths.parse, default=Lengths(16, 256, 80), help="tokens: LEAST,MOST,MEAN")
    add("--shared", type=int, default=100, help="prompt tokens that all requests begin with")
    add("--seed", type=int, default=0)
    add("--rows", type=numbers, default=[16, 32, 64, 128], help="rows of a peer, one run each")
    add("--dtypes", type=words, default=["bfloat16", "float32"], help="of a peer, one run each")
    add("--accelerate-resident", default="embedding", help="what accelerate keeps in memory: that, or a size as 0.5GiB")
    add(
        "--prefill-chunk", type=int, default=128, help="prompt tokens of a row that accelerate computes at once; 0: all"
    )
    add("--peer-part", type=int, default=1, help="run every k-th of accelerate's sorted batches only")
    add("--peer-seconds", type=float, default=math.inf, help="let generate_batch run for so long only")
    add("--penstock", default=str(Path(sys.executable).with_name("penstock")), help="the penstock command")
    add("--penstock-args", default="", help="further arguments of penstock, in one string")
    add("--cpu-memory", help="Penstock's own promise (default: the limit)")
    add("--peers-python", type=Path, help="interpreter with the peers (default: one built under --work)")
    add("--bound-rows", type=int, help="rows in flight of the bound (default: those Penstock's KV was room for)")
    add("--bound-args", default="", help="further arguments of ragged_bound.py, in one string")
    add("--no-bound", action="store_true")
    add("--time-limit", type=float, default=7200, help="seconds for one run")
    add("--warm-cache", action="store_true", help="leave the page cache as it is (for a smoke run)")
    add("--results", type=Path, help="JSONL to append to and to make the table of (default: a new one under --work)")
    add("--table-only", action="store_true", help="run nothing, print the table of --results")
    arguments = parser.parse_args()
    unknown = [engine for engine in arguments.engines if engine not in RUNS]
    if unknown:
        parser.error(f"no engine {', '.join(unknown)}; there are {', '.join(RUNS)}")
    if arguments.table_only and not arguments.results:
        parser.error("--table-only needs --results")
    if arguments.prompts.least <= arguments.shared:
        parser.error(f"--prompts begins at {arguments.prompts.least} tokens: more than --shared {arguments.shared}")
    if "penstock" in arguments.engines and not arguments.table_only and not shutil.which(arguments.penstock):
        parser.error(f"no command {arguments.penstock}; name it with --penstock or leave it out of --engines")
    return arguments


def open_sitting(arguments: argparse.Namespace) -> Sitting:
    """The job drawn and written, the checkpoint there."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.results = arguments.results or arguments.work / f"ragged-{datetime.now(UTC):%Y%m%d-%H%M%S}.jsonl"
    model = checkpoint(arguments.work, arguments.shape, arguments.layers)
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    lengths = arguments.prompts, arguments.outputs, arguments.shared
    requests = draw_requests(arguments.requests, *lengths, vocabulary, arguments.seed)
    named = [f"{one.least}-{one.most}-{one.mean}" for one in lengths[:2]]
    name = f"ragged-{arguments.requests}x{named[0]}x{named[1]}-{arguments.shared}-shared-seed{arguments.seed}"
    source = arguments.work / f"{name}-of-{vocabulary}.jsonl"
    write(source, requests)
    job = Job(name, model_name(arguments.shape, arguments.layers), arguments.memory)
    return Sitting(job, Load.of(requests, arguments.shared), model, source, arguments)


def main() -> None:
    arguments = parse()
    sitting = open_sitting(arguments)
    if not arguments.table_only:
        # the bound is that of Penstock's rows: it comes as soon as these are known, in the same sitting
        if "penstock" in arguments.engines:
            run_all("penstock", sitting)
        if not arguments.no_bound:
            append(sitting.results, measure_bound(sitting))
        for engine in arguments.engines:
            if engine != "penstock":
                run_all(engine, sitting)
        print(f"results: {sitting.results}", file=sys.stderr)
    print(table(sitting.records(), sitting.load))


def run_all(engine: str, sitting: Sitting) -> None:
    for run in RUNS[engine](sitting):
        print(f"running {run.engine} {run.dtype}{f', {run.rows} rows' if run.rows else ''}", file=sys.stderr)
        append(sitting.results, execute(run, sitting))


if __name__ == "__main__":
    main()
