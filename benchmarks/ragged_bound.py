"""What the hardware allows for a ragged job whose pages are streamed: S · max(GEMM time, page time) of a mean sweep.

With N requests of p prompt and o output tokens each, of which the first s prompt tokens are the same for all:

    T = s + Σ (p − s) + Σ (o − 1)     positions computed: the shared prefix once, a row's last token never
    S = max(Σ o / R, max o)           sweeps with R rows in flight, one token per row and sweep
    seconds = S · max(GEMM(T / S, Σ o / S), (page bytes − resident bytes) / disk)

`ideal` takes the S of a scheduler that never has fewer than R rows while requests are left and begins the longest
output first; `made` takes the S that an engine really made (--sweeps). GEMM(t, k) is the time of all products of the
layers with t tokens and of the LM head with k, from rates that bound.py measures while the disk is read, and the disk's
while products run. Work is spread evenly over the sweeps, which no schedule beats where its time grows with tokens.
Attention, sampling, widening and the start of the run count as free. JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch

from bound import CALL_TOKENS, Model, Speeds, arithmetic, measure, read_model
from ragged_job import Load


def ideal_sweeps(load: Load, rows: int) -> int:
    return max(math.ceil(load.outputs / rows), load.longest_output)


def mean_sweep(load: Load, sweeps: int) -> tuple[int, int]:
    """Tokens and samples of one sweep of so many."""
    return max(1, round(load.computed / sweeps)), max(1, round(load.outputs / sweeps))


def bound(model: Model, speeds: Speeds, load: Load, sweeps: int, resident_bytes: int) -> dict:
    tokens, samples = mean_sweep(load, sweeps)
    one = speeds.sweep(model, tokens, samples, resident_bytes)
    seconds = sweeps * one["seconds"]
    return {"sweeps": sweeps, "seconds": seconds, "tok_s": load.outputs / seconds, "sweep": one | {"samples": samples}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of safetensors")
    parser.add_argument("--load", type=json.loads, required=True, help="fields of ragged_job.Load as JSON")
    parser.add_argument("--rows", type=int, required=True, help="rows in flight that the KV budget allows")
    parser.add_argument("--sweeps", type=int, help="sweeps that an engine really made")
    parser.add_argument("--resident-bytes", type=int, default=0, help="pages that stay in memory")
    parser.add_argument("--compute", choices=["auto", "float32", "bfloat16"], default="auto", help="auto: the faster")
    parser.add_argument("--rounds", type=int, default=3, help="alone and together are measured in turn so often")
    parser.add_argument("--least-seconds", type=float, default=0.5, help="time spent on each product")
    arguments = parser.parse_args()

    model, load = read_model(arguments.model), Load(**arguments.load)
    counts = {"ideal": ideal_sweeps(load, arguments.rows)}
    if arguments.sweeps:
        counts["made"] = arguments.sweeps
    largest = max((product.shape for product in model.layers), key=math.prod)
    rates = arithmetic(largest, min(arguments.rows, CALL_TOKENS[-1]), arguments.least_seconds)
    compute = arguments.compute
    if compute == "auto":
        compute = max(("float32", "bfloat16"), key=rates.__getitem__)
    kinds = {mean_sweep(load, sweeps) for sweeps in counts.values()}
    alone, together = measure(model, kinds, getattr(torch, compute), arguments.rounds, arguments.least_seconds)
    resident = arguments.resident_bytes
    result = {
        "engine": "bound",
        "rows": arguments.rows,
        "dtype": compute,
        "page_bytes": model.page_bytes,
        "resident_bytes": resident,
        "flops": rates,
        "disk_bytes_per_second": {"alone": alone.disk, "together": together.disk},
        **{name: bound(model, together, load, sweeps, resident) for name, sweeps in counts.items()},
        "measured_alone": {name: bound(model, alone, load, sweeps, resident) for name, sweeps in counts.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
