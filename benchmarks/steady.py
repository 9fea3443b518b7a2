"""How fast the machine is at the moment, by products and reads outside of any engine.

A machine that others share gives half of its processor for some seconds, and a third less of its disk for some minutes:
what was profiled then says nothing of the run after it.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from itertools import cycle
from pathlib import Path

import torch

from penstock.memory.buffers import aligned_buffer
from penstock.memory.direct import Arrival, DirectReader
from penstock.model.pages import Extent
from penstock.model.source import demo_file

TOKENS, WIDTH, MATRICES, PRODUCTS_S = 64, 3072, 12, 1.0  # from memory: what others do there is felt too
READ_BYTES, PAGE_BYTES = 1 << 30, 32 << 20  # a limited disk gives by turns of a tenth of a second
SMALL_OPERATIONS, SMALL_WIDTH = 200, 576  # what a small model spends most of its time with
ALIKE = {"product": 1.12, "small": 1.25, "read": 1.2}  # the faster by the slower
BOUND = 0.3  # of the time: a lane that is busy for less does not decide


def speed(model: str) -> dict[str, float]:
    """GFLOP/s of products with weights from memory, thousands of small operations a second, and GB/s of direct reads of
    the model's largest file."""
    return {"product": _product(), "small": _small(), "read": _read(_largest(Path(model)))}


def apart(speeds: list[dict[str, float]]) -> dict[str, float]:
    """The faster by the slower, of each load."""
    return {load: max(s[load] for s in speeds) / min(s[load] for s in speeds) for load in speeds[0]}


def steady(found: dict[str, float], disk_share: float) -> bool:
    """Whether the machine stayed the same, for a run that keeps the disk busy for such a share of its time."""
    loads = ["product", "small", "read"] if disk_share > BOUND else ["product", "small"]
    return all(found[load] <= ALIKE[load] for load in loads)


def _product() -> float:
    x, weights = torch.randn(TOKENS, WIDTH), [torch.randn(WIDTH, WIDTH) for _ in range(MATRICES)]
    taken, end = [], time.perf_counter() + PRODUCTS_S
    while time.perf_counter() < end:
        start = time.perf_counter()
        for weight in weights:
            torch.mm(x, weight)
        taken.append((time.perf_counter() - start) / MATRICES)
    return 2 * TOKENS * WIDTH**2 / statistics.median(taken) / 1e9


def _small() -> float:
    x, taken, end = torch.randn(TOKENS, SMALL_WIDTH), [], time.perf_counter() + PRODUCTS_S
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(SMALL_OPERATIONS):
            x.mul(x)
        taken.append((time.perf_counter() - start) / SMALL_OPERATIONS)
    return 1 / statistics.median(taken) / 1e3


def _largest(model: Path) -> Path:
    if not model.exists():  # the demo model: a file of a package
        return demo_file()
    files = [model] if model.is_file() else list(model.glob("*.safetensors"))
    return max(files, key=lambda file: file.stat().st_size)


def _read(path: Path) -> float:
    pages = [Extent(str(path), at, PAGE_BYTES, 0) for at in range(0, path.stat().st_size - PAGE_BYTES + 1, PAGE_BYTES)]
    slots = [aligned_buffer(PAGE_BYTES, huge=True).zero_() for _ in range(2)]
    reader = DirectReader()
    reader.begin([pages[0]], slots[0]).wait()  # its threads have begun
    asked, turns = deque[Arrival](), zip(cycle([[page] for page in pages]), cycle(slots), strict=False)
    start, came = time.perf_counter(), 0
    while came * PAGE_BYTES < READ_BYTES:
        while len(asked) < len(slots):
            asked.append(reader.begin(*next(turns)))
        asked.popleft().result()
        came += 1
    taken = time.perf_counter() - start
    for arrival in asked:
        arrival.wait()
    reader.close()
    return came * PAGE_BYTES / taken / 1e9
