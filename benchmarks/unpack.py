"""How fast packed weights are unpacked: every format, from memory into the nearest cache, with all threads.

Billions of weights a second, written as float32 and as bfloat16, beside reading the same bytes as torch copies them.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from penstock.quant.forms import LAYOUTS, Form
from penstock.quant.unpacking import unpack

COLD_BYTES = 256 << 20  # walked over, so that nothing comes from cache
PANEL_ROWS, COLUMNS = 4096, 3072  # of a part
DTYPES = (torch.float32, torch.bfloat16)


def rate(form: Form, dtype: torch.dtype, rounds: int) -> float:
    """Weights per second that are read, and written in a dtype: the median of some walks over COLD_BYTES."""
    part_bytes = PANEL_ROWS * form.row_bytes(COLUMNS)
    threads = torch.get_num_threads()
    count = COLD_BYTES // part_bytes // threads * threads
    parts = torch.zeros(threads, count // threads, PANEL_ROWS, form.row_bytes(COLUMNS), dtype=torch.uint8)
    # as products do it, into the nearest cache: all rows of a thread's parts are written to the same place
    rows = torch.empty(threads, COLUMNS, dtype=dtype)
    panels = rows.as_strided((threads, PANEL_ROWS, COLUMNS), (COLUMNS, 0, 1))
    taken = []

    def walk(thread: int) -> None:
        for part in parts[thread]:
            unpack(part, form, panels[thread], threads=1)

    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds + 1):
            start = time.perf_counter()
            list(pool.map(walk, range(threads)))
            taken.append(time.perf_counter() - start)
    taken = taken[1:]  # the first compiles
    return PANEL_ROWS * COLUMNS * count / statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = {
        form.name: {
            "packed_bits": 8 * form.record_bytes / form.group,
            **{str(dtype).removeprefix("torch."): rate(form, dtype, arguments.rounds) for dtype in DTYPES},
        }
        for form in LAYOUTS
    }
    copied = torch.zeros(COLD_BYTES, dtype=torch.uint8)
    target, taken = torch.empty(1 << 20, dtype=torch.uint8), []
    for part in itertools.islice(itertools.cycle(copied.split(1 << 20)), 3 * COLD_BYTES >> 20):
        start = time.perf_counter()
        target.copy_(part)
        taken.append(time.perf_counter() - start)
    reading = len(target) / statistics.median(taken)
    if arguments.json:
        json.dump({"threads": torch.get_num_threads(), "read_bytes_per_s": reading, "weights_per_s": found}, sys.stdout)
        return
    print("| format | float32, G weights/s | bfloat16, G weights/s | GB/s written | GB/s of packed rows |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, of in found.items():
        each = 1e-9 * of["float32"], 1e-9 * of["bfloat16"]
        print(f"| {name} | {each[0]:.1f} | {each[1]:.1f} | {2 * each[1]:.1f} | {of['packed_bits'] / 8 * each[1]:.1f} |")
    print(f"\n{torch.get_num_threads()} threads; torch copies {reading / 1e9:.1f} GB/s from memory into cache.")


if __name__ == "__main__":
    main()
