"""Decode attention of one layer on this CPU, beside the speed at which its memory can be read in the same sitting.

Run: python benchmarks/attention.py [--heads 24 --kv-heads 8 --dim 128 --block-tokens 32 --dtype bfloat16]
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from penstock.engine.attention import attend
from penstock.engine.call_tables import CallTables

SHAPES = [(256, 49, 0.0), (256, 400, 0.7), (32, 400, 0.7), (64, 1500, 0.0), (1, 8000, 0.0)]  # rows, mean keys, sigma


def fastest_s(work: Callable[[], object], times: int = 7) -> float:
    """Seconds of the fastest of some runs, after one to warm up."""
    work()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def row_lengths(rows: int, mean: int, sigma: float) -> list[int]:
    """Log-normal lengths with this mean."""
    drawn = np.random.default_rng(0).normal(-(sigma**2) / 2, sigma, rows)
    return [max(1, int(length)) for length in mean * np.exp(drawn)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, default in (("--heads", 24), ("--kv-heads", 8), ("--dim", 128), ("--block-tokens", 32)):
        parser.add_argument(flag, type=int, default=default)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    memory = torch.ones(512 << 17, dtype=torch.int64)  # 512 MiB

    print(f"{'rows':>5} {'keys':>6} {'ms/layer':>9} {'KV GB/s':>8} {'memory GB/s':>12} {'share':>6}")
    for rows, mean, sigma in SHAPES:
        lengths = row_lengths(rows, mean, sigma)
        counts = [-(-length // options.block_tokens) for length in lengths]
        part = (options.kv_heads, options.block_tokens, options.dim)
        arena = torch.randn(sum(counts), 2 * np.prod(part), dtype=torch.float32).to(dtype)
        k_arena, v_arena = (half.unflatten(1, part) for half in arena.chunk(2, 1))
        blocks = [ids.tolist() for ids in torch.randperm(sum(counts)).split(counts)]
        tables = CallTables.build([(length - 1, 1) for length in lengths], blocks, options.block_tokens, "cpu")
        q = torch.randn(rows, options.heads, options.dim)
        with torch.inference_mode():
            taken_s = fastest_s(lambda: attend(q, k_arena, v_arena, tables, None, options.dim**-0.5))  # noqa: B023 - called here
            read_gbps = memory.nbytes / fastest_s(memory.sum) / 1e9
        kv_bytes = sum(lengths) * 2 * options.kv_heads * options.dim * dtype.itemsize
        gbps = kv_bytes / taken_s / 1e9
        print(
            f"{rows:5} {mean:6} {taken_s * 1e3:9.2f} {gbps:8.1f} {read_gbps:12.1f} {gbps / read_gbps:6.0%}", flush=True
        )


if __name__ == "__main__":
    main()
