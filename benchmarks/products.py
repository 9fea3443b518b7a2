"""Products with packed weights computed in float32 and in bfloat16, by tokens: from how many on is 16 bits faster?

One thread, and milliseconds of its own CPU time, the median of rounds that take turns: other programs on the machine
change little. Weights are not in cache. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator

import torch

from penstock.engine.linear import Widening
from penstock.quant.forms import named
from penstock.quant.packed import Packed

SHAPES = ((8192, 3072), (3072, 3072), (3072, 8192))  # out, in
TOKENS = (1, 2, 4, 8, 9, 16, 32, 64, 128, 256, 512)
COLD_BYTES = 64 << 20  # of weights that take turns


def milliseconds(works: list[Callable[[], object]], rounds: int) -> list[float]:
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(rounds + 1):
        for work, times in zip(works, taken, strict=True):
            start = time.thread_time()
            work()
            times.append(1e3 * (time.thread_time() - start))
    return [statistics.median(times[1:]) for times in taken]  # the first compiles


def products(weights: Iterator[Packed], tokens: int, rows: int, columns: int) -> list[Callable[[], object]]:
    """One in float32 and one in bfloat16, whatever the engine would choose."""
    in_float32, in_16_bits = (Widening(dtype, torch.device("cpu")) for dtype in (torch.float32, torch.bfloat16))
    x, out = torch.randn(tokens, columns), torch.empty(tokens, rows, dtype=torch.bfloat16)
    narrow = x.bfloat16()
    return [
        lambda: in_float32.linear(x, next(weights), None),
        lambda: in_16_bits._by_panels(narrow, next(weights), out),
    ]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", default="int4g64", help="as quant/forms.py names it")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    form = named(arguments.form)
    if form is None:
        parser.error(f"no packed format is called {arguments.form}")
    print(f"| {arguments.form}, float32 → bfloat16, ms | " + " | ".join(map(str, TOKENS)) + " |")
    print("| --- |" + " ---: |" * len(TOKENS))
    for rows, columns in SHAPES:
        nbytes = rows * form.row_bytes(columns)
        data = torch.zeros(-(-COLD_BYTES // nbytes), rows, form.row_bytes(columns), dtype=torch.uint8)
        weights = itertools.cycle([Packed(form, columns, matrix) for matrix in data])
        cells = []
        for tokens in TOKENS:
            times = milliseconds(products(weights, tokens, rows, columns), arguments.rounds)
            cells.append(" → ".join(f"{each:.1f}" for each in times))
        print(f"| {rows} × {columns} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
