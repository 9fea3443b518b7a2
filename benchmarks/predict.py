"""Predicted beside measured: different jobs on this machine in one sitting; prints a Markdown table.

    python benchmarks/predict.py --work DIR [--only NAME,…] [--profile each]

Measures the machine first (penstock profile), once or before each job, for a machine that others share is another one
ten minutes later. Then runs each job through the command line with `--json`, which carries
what the planner said of it beside what happened. Checkpoints are built under --work where they are missing. Every
result is appended to a JSONL file; `--table-only` prints its table again.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sitting import append, checkpoint, drop_page_cache, machine, words


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
    Case("135M, all in memory", "demo", None, [(64, 32)] * 64, ""),
    Case("135M, long prompts", "demo", None, [(1024, 8)] * 16, ""),
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


def table(records: Sequence[dict]) -> str:
    lines = [
        "| job | rows | predicted tok/s | measured | off | prefill | decode | disk lane | sweeps |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for record in records:
        if "problem" in record:
            lines.append(f"| {record['name']} | | | {record['problem']} | | | | | |")
            continue
        run, said = record["run"], record["run"]["predicted"]
        off = said["total_tok_s"] / run["total_tok_s"] - 1
        lanes = [f"{r['lanes'].get('disk→cpu', 0):.0%}" for r in (said, run)]
        rates = [f"{said[k]:.1f} / {run[k]:.1f}" for k in ("prefill_tok_s", "decode_tok_s")]
        lines.append(
            f"| {record['name']} | {run['rows_mean']:.0f} | {said['total_tok_s']:.2f} | {run['total_tok_s']:.2f} "
            f"| {off:+.0%} | {rates[0]} | {rates[1]} | {' / '.join(lanes)} | {said['sweeps']} / {run['sweeps']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--penstock", default=str(Path(sys.executable).with_name("penstock")))
    parser.add_argument("--only", type=words, help="names of jobs, in part")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--profile", choices=("once", "each", "never"), default="once", help="never: as it is stored")
    parser.add_argument("--table-only", action="store_true")
    arguments = parser.parse_args()
    results = arguments.results or arguments.work / "predict.jsonl"
    if not arguments.table_only:
        chosen = [c for c in CASES if arguments.only is None or any(part in c.name for part in arguments.only)]
        for number, case in enumerate(chosen):
            if arguments.profile == "each" or (arguments.profile == "once" and number == 0):
                # its own files, for two files of one disk differ by a tenth or more
                measured = [arguments.penstock, "profile", "--force", model_of(case, arguments)]
                subprocess.run(measured, check=True, stdout=sys.stderr)
            record = execute(case, arguments)
            append(results, record)
            print(table([record]).splitlines()[-1], file=sys.stderr)
    print(table([json.loads(line) for line in results.read_text().splitlines()]))


if __name__ == "__main__":
    main()
