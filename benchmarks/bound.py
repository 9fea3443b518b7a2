"""What the hardware allows for a model streamed from disk on a CPU: sum over sweeps of max(GEMM time, page time).

The rate of the model's own matrix products, each by the fastest of three ways that torch has, and of direct reads of
its own files are measured in one sitting, each alone and both together; the bound is computed from the rates measured
together. Taken as free: attention, norms, sampling, widening of 16-bit weights, memory for as many rows as asked, the
start of the run. The LM head counts for sampled positions alone. With --weight-bits, pages are as small as Penstock
packs them, and every layer's weights are unpacked once a sweep, at the rate of Penstock's own kernel into a panel that
stays in cache. JSON on stdout, a table on stderr.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import mmap
import os
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn.functional import linear

READERS, READ_BYTES = 16, 4 << 20
CALL_TOKENS = (256, 512, 1024, 2048)  # a long sweep is cut into the calls that are fastest here
PANEL_ROWS = 2048
PARAMETER_BITS = 0.5  # of a weight: a scale and a minimum of 16 bits for each group of 64
COLD_BYTES = 64 << 20  # products walk over this many bytes of weights, as a sweep does, not over one cached matrix


@dataclass(frozen=True)
class Product:
    """A matrix (out, in) that a sweep multiplies `count` times, each by `share` of the sweep's tokens."""

    shape: tuple[int, int]
    count: int
    share: float


@dataclass(frozen=True)
class Model:
    """The products of the layers, the LM head, and the bytes that a sweep streams."""

    layers: tuple[Product, ...]
    head: Product
    page_bytes: int
    files: tuple[Path, ...]
    unpack_seconds: float = 0.0

    def packed(self, bits: int) -> Model:
        """The same with the layers packed, and their unpacking measured."""
        weights = sum(product.count * math.prod(product.shape) for product in self.layers)
        head_bytes = 2 * math.prod(self.head.shape)
        page_bytes = head_bytes + round(weights * (bits + PARAMETER_BITS) / 8)
        return replace(self, page_bytes=page_bytes, unpack_seconds=weights / unpacked_per_second(bits))

    def products(self, tokens: int, samples: int) -> list[tuple[Product, int]]:
        """Every product of a sweep with the tokens one matrix sees."""
        return [(p, max(1, round(tokens * p.share))) for p in self.layers] + [(self.head, samples)]


def read_model(directory: Path) -> Model:
    """Shapes and bytes from the headers of a directory of safetensors."""
    config = json.loads((directory / "config.json").read_text())
    files = tuple(sorted(directory.glob("*.safetensors")))
    if not files:
        raise SystemExit(f"bound.py: no safetensors in {directory}")
    tensors: dict[str, dict] = {}
    for path in files:
        with path.open("rb") as file:
            tensors |= json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors.pop("__metadata__", None)
    head_key = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"
    expert_share = config.get("num_experts_per_tok", 1) / config.get("num_experts", 1)
    counts: Counter[tuple[tuple[int, int], float]] = Counter()
    page_bytes = 0
    for key, entry in tensors.items():
        if len(entry["shape"]) != 2 or (key == "model.embed_tokens.weight" and key != head_key):
            continue
        start, end = entry["data_offsets"]
        page_bytes += end - start
        if key != head_key:
            rows, columns = entry["shape"]
            counts[(rows, columns), expert_share if ".experts." in key else 1.0] += 1
    layers = tuple(Product(shape, count, share) for (shape, share), count in counts.items())
    rows, columns = tensors[head_key]["shape"]
    return Model(layers, Product((rows, columns), 1, 1.0), page_bytes, files)


class Reader:
    """Direct reads of the files, over and over, by READERS threads of READ_BYTES each."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self.descriptors = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in files]
        chunks = [
            (fd, offset)
            for fd in self.descriptors
            for offset in range(0, os.fstat(fd).st_size - READ_BYTES + 1, READ_BYTES)
        ]
        self.chunks = itertools.cycle(chunks)
        self.lock = threading.Lock()
        self.running = False
        self.read_bytes = 0

    def work(self) -> None:
        buffer = mmap.mmap(-1, READ_BYTES)
        while self.running:
            with self.lock:
                fd, offset = next(self.chunks)
            count = os.preadv(fd, [buffer], offset)
            with self.lock:
                self.read_bytes += count

    def __enter__(self) -> Reader:
        self.running, self.read_bytes, self.begun = True, 0, time.perf_counter()
        self.threads = [threading.Thread(target=self.work) for _ in range(READERS)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.running = False
        for thread in self.threads:
            thread.join()
        self.rate = self.read_bytes / (time.perf_counter() - self.begun)


def timed(call, least_seconds: float) -> float:
    """Median seconds of a call, after one to warm up."""
    call()
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < least_seconds:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def onednn_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """torch's other matrix library, which it does not choose for float32 by itself: often faster for few tokens."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def weights_first(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product with its factors exchanged, left transposed."""
    return weight @ x.T


def product_seconds(shape: tuple[int, int], tokens: int, dtype: torch.dtype, least_seconds: float) -> float:
    """Seconds of one product by a matrix that lies in memory in the compute dtype, by the fastest of torch's ways."""
    one = math.prod(shape) * dtype.itemsize
    weights = itertools.cycle([torch.randn(shape, dtype=dtype) for _ in range(max(1, COLD_BYTES // one))])
    x = torch.randn(tokens, shape[1], dtype=dtype)
    ways = (linear, weights_first, onednn_linear)
    return min(timed(lambda way=way: way(x, next(weights)), least_seconds / len(ways)) for way in ways)


def widened_seconds(shape: tuple[int, int], tokens: int, least_seconds: float) -> float:
    """Seconds of one float32 product by a bf16 matrix, widened a panel of PANEL_ROWS at a time."""
    weight, x = torch.randn(shape).bfloat16(), torch.randn(tokens, shape[1])
    out = torch.empty(tokens, shape[0])

    def product() -> None:
        for start in range(0, shape[0], PANEL_ROWS):
            out[:, start : start + PANEL_ROWS] = linear(x, weight[start : start + PANEL_ROWS].float())

    return timed(product, least_seconds)


def unpacked_per_second(bits: int) -> float:
    """Weights per second that the kernel unpacks, from memory to a panel in cache, with all threads."""
    from penstock.quant.grouped import Grouped
    from unpack import rate

    return rate(Grouped(bits), torch.float32, 5)


def call_sizes(tokens: int) -> list[int]:
    """The sizes of call that a sweep of so many tokens may be cut into."""
    return [size for size in CALL_TOKENS if size < tokens] + ([tokens] if tokens <= CALL_TOKENS[-1] else [])


class Speeds:
    """Seconds of products by (shape, tokens of a call), and the disk's rate."""

    def __init__(self, products: dict[tuple[tuple[int, int], int], float], disk: float) -> None:
        self.products, self.disk = products, disk

    def gemm_seconds(self, model: Model, tokens: int, samples: int) -> float:
        """GEMM time of a sweep, each product in the size of call that suits it best."""
        return sum(
            product.count * min(seen / size * self.products[product.shape, size] for size in call_sizes(seen))
            for product, seen in model.products(tokens, samples)
        )

    def sweep(self, model: Model, tokens: int, samples: int, resident_bytes: int) -> dict[str, float]:
        """Times of one sweep over all pages."""
        gemm = self.gemm_seconds(model, tokens, samples)
        page, computed = max(0, model.page_bytes - resident_bytes) / self.disk, gemm + model.unpack_seconds
        return {"tokens": tokens, "gemm_seconds": gemm, "page_seconds": page, "seconds": max(computed, page)}


@dataclass(frozen=True)
class Job:
    """Prompts of equal length, tokens to generate for each, rows in flight when they come and go."""

    prompts: int
    prompt_len: int
    gen_len: int
    rows: int

    def mixed_tokens(self) -> int:
        """Tokens of a steady sweep: a row's prompt and decode tokens over the gen_len sweeps it stays."""
        return round(self.rows * (self.prompt_len + self.gen_len - 1) / self.gen_len)

    def sweeps(self) -> set[tuple[int, int]]:
        """(tokens, samples) of every kind of sweep in either bound."""
        return {
            (self.prompts * self.prompt_len, self.prompts),
            (self.prompts, self.prompts),
            (self.mixed_tokens(), self.rows),
        }


def bounds(model: Model, speeds: Speeds, job: Job, resident_bytes: int) -> dict[str, dict]:
    """Both bounds: all prompts at once (one prefill sweep, then decode), and a steady job of `rows` in flight."""
    prefill = speeds.sweep(model, job.prompts * job.prompt_len, job.prompts, resident_bytes)
    decode = speeds.sweep(model, job.prompts, job.prompts, resident_bytes)
    at_once = prefill["seconds"] + (job.gen_len - 1) * decode["seconds"]
    mixed = speeds.sweep(model, job.mixed_tokens(), job.rows, resident_bytes)
    steady = job.prompts / job.rows * job.gen_len * mixed["seconds"]
    made = job.prompts * job.gen_len
    return {
        "at_once": {"seconds": at_once, "tok_s": made / at_once, "prefill_sweep": prefill, "decode_sweep": decode},
        "mixed": {"seconds": steady, "tok_s": made / steady, "sweep": mixed},
    }


def measure(
    model: Model, sweeps: set[tuple[int, int]], dtype: torch.dtype, rounds: int, least_seconds: float
) -> tuple[Speeds, Speeds]:
    """Speeds for sweeps of (tokens, samples), alone and together, each the median over rounds taken in turn."""
    wanted = sorted(
        {
            (product.shape, size)
            for tokens, samples in sweeps
            for product, seen in model.products(tokens, samples)
            for size in call_sizes(seen)
        }
    )
    reader = Reader(model.files)

    def products() -> dict[tuple[tuple[int, int], int], float]:
        return {(shape, size): product_seconds(shape, size, dtype, least_seconds) for shape, size in wanted}

    def median(taken: list[dict]) -> dict:
        return {key: statistics.median(one[key] for one in taken) for key in taken[0]}

    alone, together, disk_alone, disk_together = [], [], [], []
    for i in range(rounds):
        with reader:
            time.sleep(max(3.0, 4 * least_seconds))
        disk_alone.append(reader.rate)
        alone.append(products())
        with reader:
            together.append(products())
        disk_together.append(reader.rate)
        print(
            f"round {i + 1} of {rounds}: disk {disk_alone[-1] / 1e9:.2f} GB/s alone, "
            f"{disk_together[-1] / 1e9:.2f} beside GEMM",
            file=sys.stderr,
        )
    return (
        Speeds(median(alone), statistics.median(disk_alone)),
        Speeds(median(together), statistics.median(disk_together)),
    )


def arithmetic(shape: tuple[int, int], tokens: int, least_seconds: float) -> dict[str, float]:
    """FLOP/s of the model's largest layer matrix in each dtype, and in float32 from bf16 bytes."""
    flop = 2 * math.prod(shape) * tokens
    return {
        "float32": flop / product_seconds(shape, tokens, torch.float32, least_seconds),
        "bfloat16": flop / product_seconds(shape, tokens, torch.bfloat16, least_seconds),
        "float32_from_bfloat16": flop / widened_seconds(shape, tokens, least_seconds),
    }


def table(rates: dict[str, float], found: dict[str, dict[str, dict]], speeds: dict[str, Speeds]) -> str:
    lines = ["", "| arithmetic | GFLOP/s |", "| --- | ---: |"]
    lines += [f"| {name} | {rate / 1e9:.0f} |" for name, rate in rates.items()]
    lines += ["", "| measured | disk GB/s | bound | seconds | tok/s |", "| --- | ---: | --- | ---: | ---: |"]
    for measured, kinds in found.items():
        for kind, bound in kinds.items():
            disk = speeds[measured].disk / 1e9
            lines.append(f"| {measured} | {disk:.2f} | {kind} | {bound['seconds']:.1f} | {bound['tok_s']:.2f} |")
    lines += ["", "| sweep (together) | tokens | GEMM s | pages s |", "| --- | ---: | ---: | ---: |"]
    sweeps = {
        "prefill": found["together"]["at_once"]["prefill_sweep"],
        "decode": found["together"]["at_once"]["decode_sweep"],
        "mixed": found["together"]["mixed"]["sweep"],
    }
    for name, sweep in sweeps.items():
        lines.append(f"| {name} | {sweep['tokens']} | {sweep['gemm_seconds']:.2f} | {sweep['page_seconds']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of safetensors")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--prompt-len", type=int, default=32)
    parser.add_argument("--gen-len", type=int, default=32)
    parser.add_argument("--rows", type=int, help="rows in flight of the mixed bound (default: all prompts)")
    parser.add_argument("--resident", type=float, default=0, help="GiB of pages that stay in memory")
    parser.add_argument("--weight-bits", type=int, choices=[4, 8], help="of the layers' weights, packed by Penstock")
    parser.add_argument("--compute", choices=["auto", "float32", "bfloat16"], default="auto", help="auto: the faster")
    parser.add_argument("--rounds", type=int, default=3, help="alone and together are measured in turn so often")
    parser.add_argument("--least-seconds", type=float, default=0.5, help="time spent on each product")
    arguments = parser.parse_args()

    model = read_model(arguments.model)
    if arguments.weight_bits:
        model = model.packed(arguments.weight_bits)
    job = Job(arguments.prompts, arguments.prompt_len, arguments.gen_len, arguments.rows or arguments.prompts)
    largest = max((product.shape for product in model.layers), key=math.prod)
    rates = arithmetic(largest, min(job.rows, CALL_TOKENS[-1]), arguments.least_seconds)
    compute = arguments.compute
    if compute == "auto":
        compute = max(("float32", "bfloat16"), key=rates.__getitem__)
    alone, together = measure(model, job.sweeps(), getattr(torch, compute), arguments.rounds, arguments.least_seconds)
    speeds = {"alone": alone, "together": together}
    resident_bytes = int(arguments.resident * 2**30)
    found = {name: bounds(model, one, job, resident_bytes) for name, one in speeds.items()}
    print(table(rates, found, speeds), file=sys.stderr)
    result = {
        "engine": "bound",
        "prompts": job.prompts,
        "rows": job.rows,
        "prompt_len": job.prompt_len,
        "gen_len": job.gen_len,
        "dtype": compute,
        "page_bytes": model.page_bytes,
        "unpack_seconds": model.unpack_seconds,
        "resident_bytes": resident_bytes,
        "flops": rates,
        "disk_bytes_per_second": {name: one.disk for name, one in speeds.items()},
        **found["together"],
        "measured_alone": found["alone"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
