"""Predicted beside measured: different jobs on this machine in one sitting; prints a Markdown table.

    python benchmarks/predict.py --work DIR [--only NAME,…] [--tries N]

Measures the machine before each job (penstock profile), for a machine that others share is another one ten minutes
later, and with the job's own files, for two files of one disk differ by a tenth or more. Then runs it through the
command line with `--json`, which carries what the planner said of it beside what happened. Three loads that no engine
takes part in (`steady.py`) are timed around the profile and around the run: where products differ by more than an
eighth, small operations by a quarter, or the reads of a run that waits for the disk by a fifth, profile and run are
done again, so many times in all. The last try stands, and the table says how far apart all three were. Checkpoints are
built under --work where they are missing. Every try is appended to a JSONL file; `--table-only` prints its table again.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sitting import append, checkpoint, drop_page_cache, machine, words
from steady import apart, speed, steady


@dataclass(frozen=True)
class Case:
    """A job: a shape of make_model.py or ``demo``, (prompt, output) tokens of each request, flags of penstock."""

    name: str
    shape: str
    layers: int | None
    requests: Sequence[tuple[int, int]]
    flags: str


def ragged(count: int) -> list[tuple[int, int]]:
    draw = random.Random(5)
    return [(draw.randrange(16, 256), draw.randrange(4, 48)) for _ in range(count)]


CASES = (
    Case("135M, all in memory", "demo", None, [(64, 32)] * 192, ""),
    Case("135M, long prompts", "demo", None, [(1024, 8)] * 48, ""),
    Case("4 layers, 900 MiB, 64 rows", "llama3b", 4, [(32, 32)] * 64, "--cpu-memory 900MiB"),
    Case("4 layers, 1.2 GiB, 64 rows", "llama3b", 4, [(32, 32)] * 64, "--cpu-memory 1200MiB"),
    Case("4 layers, 1.5 GiB, 4 rows", "llama3b", 4, [(32, 32)] * 4, "--cpu-memory 1500MiB"),
    Case("4 layers, 1 GiB, long prompts", "llama3b", 4, [(1000, 8)] * 16, "--cpu-memory 1GiB"),
    Case("4 layers, 1 GiB, ragged", "llama3b", 4, ragged(96), "--cpu-memory 1GiB"),
    Case("4 layers, KV on disk", "llama3b", 4, [(128, 24)] * 48, "--cpu-memory 1GiB --kv disk=100%"),
    Case("28 layers, 3 GiB, 96 rows", "llama3b", None, [(32, 8)] * 96, "--cpu-memory 3GiB"),
    Case("28 layers, 2 GiB, 8 rows", "llama3b", None, [(32, 8)] * 8, "--cpu-memory 2GiB"),
    Case("experts, 3 GiB, 48 rows", "qwen3moe", None, [(32, 8)] * 48, "--cpu-memory 3GiB"),
)


def vocabulary(model: str) -> int:
    return 49152 if model == "demo" else json.loads((Path(model) / "config.json").read_text())["vocab_size"]


def model_of(case: Case, arguments: Namespace) -> str:
    return "demo" if case.shape == "demo" else str(checkpoint(arguments.work, case.shape, case.layers))


def command_of(case: Case, arguments: Namespace) -> list[str]:
    model = model_of(case, arguments)
    draw, most = random.Random(0), vocabulary(model)
    slug = "".join(c if c.isalnum() else "-" for c in case.name)
    source, out = arguments.work / f"predict-{slug}.jsonl", arguments.work / f"predict-{slug}.out.jsonl"
    lines = [
        {"prompt_token_ids": [draw.randrange(3, most) for _ in range(prompt)], "max_tokens": new}
        for prompt, new in case.requests
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [arguments.penstock, "run-batch", model, "-i", str(source), "-o", str(out), "--overwrite", "--json"]
    return [*command, "--ignore-eos", *shlex.split(case.flags)]


def execute(case: Case, arguments: Namespace) -> dict:
    command = command_of(case, arguments)
    record = machine() | {"name": case.name, "command": shlex.join(command), "cold_cache": drop_page_cache()}
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return record | {"problem": done.stderr.strip().splitlines()[-1]}
    run = json.loads(done.stdout)
    return record | {"run": run.get("run", run)}


def tried(case: Case, arguments: Namespace) -> Iterator[dict]:
    """Each try of a job, until one has run on the machine that was profiled."""
    model = model_of(case, arguments)
    for number in range(arguments.tries):
        speeds = [speed(model)]
        if arguments.profile == "each":
            command = [arguments.penstock, "profile", "--force", model]
            subprocess.run(command, check=True, stdout=sys.stderr)
            speeds.append(speed(model))
        record = execute(case, arguments)
        speeds.append(speed(model))
        found = apart(speeds)
        yield record | {"try": number + 1, "speeds": speeds, "apart": found}
        if "problem" in record or steady(found, record["run"]["lanes"].get("disk→cpu", 0)):
            return


def last_tries(records: Sequence[dict]) -> list[dict]:
    """What stands of each job."""
    return list({record["name"]: record for record in records}.values())


def table(records: Sequence[dict]) -> str:
    lines = [
        "| job | rows | predicted tok/s | measured | off | prefill | decode | disk lane | sweeps | try | machine |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for record in records:
        if "problem" in record:
            lines.append(f"| {record['name']} | | | {record['problem']} | | | | | | | |")
            continue
        run, said = record["run"], record["run"]["predicted"]
        off = said["total_tok_s"] / run["total_tok_s"] - 1
        lanes = [f"{r['lanes'].get('disk→cpu', 0):.0%}" for r in (said, run)]
        unlike = [f"{ratio - 1:.0%}" for ratio in record.get("apart", {}).values()]
        rates = [f"{said[k]:.1f} / {run[k]:.1f}" for k in ("prefill_tok_s", "decode_tok_s")]
        lines.append(
            f"| {record['name']} | {run['rows_mean']:.0f} | {said['total_tok_s']:.2f} | {run['total_tok_s']:.2f} "
            f"| {off:+.0%} | {rates[0]} | {rates[1]} | {' / '.join(lanes)} | {said['sweeps']} / {run['sweeps']} "
            f"| {record.get('try', 1)} | {' / '.join(unlike)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--penstock", default=str(Path(sys.executable).with_name("penstock")))
    parser.add_argument("--only", type=words, help="names of jobs, in part")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--profile", choices=("each", "never"), default="each", help="never: as it is stored")
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--table-only", action="store_true")
    arguments = parser.parse_args()
    results = arguments.results or arguments.work / "predict.jsonl"
    if not arguments.table_only:
        chosen = [c for c in CASES if arguments.only is None or any(part in c.name for part in arguments.only)]
        for case in chosen:
            for record in tried(case, arguments):
                append(results, record)
                print(table([record]).splitlines()[-1], file=sys.stderr)
    print(table(last_tries([json.loads(line) for line in results.read_text().splitlines()])))


if __name__ == "__main__":
    main()
