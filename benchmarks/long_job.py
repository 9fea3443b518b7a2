"""Memory and resume time of a job of very many short lines: long_job.py --work DIR [--lines N] [--plot FILE].

A tiny random model answers N synthetic lines under ``penstock run-batch``; resident memory is sampled while it runs.
Then the scan that a second start does (the output, and the input against it) is timed. JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
EVERY_S = 0.5


def prepare(work: Path, lines: int) -> tuple[Path, Path]:
    """The model's config and the input file."""
    model, source = work / "tiny", work / f"lines-{lines}.jsonl"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text(json.dumps(CONFIG))
    draw = random.Random(0)
    with source.open("w") as file:
        for number in range(lines):
            ids = [draw.randrange(3, 256) for _ in range(draw.randrange(2, 12))]
            line = {"custom_id": f"request-{number:08}", "prompt_token_ids": ids, "max_tokens": draw.randrange(1, 5)}
            file.write(json.dumps(line) + "\n")
    return model, source


def watched(command: list[str], out: Path) -> tuple[list[tuple[float, int, int]], float]:
    """(seconds, resident bytes, output bytes) while the command runs, and how long it ran."""
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    seen: list[tuple[float, int, int]] = []
    while process.poll() is None:
        try:
            resident = psutil.Process(process.pid).memory_info().rss
        except psutil.NoSuchProcess:
            break
        seen.append((time.monotonic() - begun, resident, out.stat().st_size if out.exists() else 0))
        time.sleep(EVERY_S)
    if process.wait() != 0:
        raise SystemExit(f"long_job.py: the command ended with {process.returncode}: {' '.join(command)}")
    return seen, time.monotonic() - begun


def scan_seconds(source: Path, out: Path) -> tuple[float, float, int]:
    """What a second start does before it loads anything more: the output, and the input against it."""
    from penstock.jobs.answers import scan
    from penstock.jobs.job import JobFile
    from penstock.jobs.survey import resumed

    begun = time.perf_counter()
    done = scan(out)
    scanned = time.perf_counter() - begun
    with JobFile.open(out) as job:
        kept = job.progress["survey"]
    found = resumed(source, kept, done)
    seconds = time.perf_counter() - begun
    if found is None or found.done != found.lines:
        raise SystemExit("long_job.py: the input is not what the job was started with, or not all of it is done")
    return scanned, seconds - scanned, len(done)


def plot(seen: list[tuple[float, int, int]], lines: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    axes.plot([at for at, _, _ in seen], [resident / 2**20 for _, resident, _ in seen], color="#1f6f8b")
    axes.set_ylim(0)
    axes.set_xlim(0)
    axes.set_xlabel("seconds since the command began")
    axes.set_ylabel("resident memory, MiB")
    axes.set_title(f"Does memory grow with the lines of a job? ({lines:,} short ones)", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory for the model and the files")
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--penstock", default=str(Path(sys.executable).with_name("penstock")))
    parser.add_argument("--plot", type=Path, help="write memory over time as PNG (needs matplotlib)")
    arguments = parser.parse_args()

    model, source = prepare(arguments.work, arguments.lines)
    out = arguments.work / f"answers-{arguments.lines}.jsonl"
    command = [arguments.penstock, "run-batch", str(model), "-i", str(source), "-o", str(out), "--overwrite", "--json"]
    command += ["--random-weights", "--unchecked", "--dtype", "float32", "--rows", "512"]
    seen, seconds = watched(command, out)
    scanned, surveyed, answers = scan_seconds(source, out)
    if arguments.plot:
        plot(seen, arguments.lines, arguments.plot)
    result: dict[str, Any] = {
        "lines": arguments.lines,
        "seconds": seconds,
        "scan_output_seconds": scanned,
        "check_input_seconds": surveyed,
        "answers": answers,
        "resident_mib": {
            part: round(seen[int(at * (len(seen) - 1))][1] / 2**20)
            for part, at in (("quarter", 0.25), ("half", 0.5), ("three_quarters", 0.75), ("end", 1.0))
        },
        "command": " ".join(command),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
