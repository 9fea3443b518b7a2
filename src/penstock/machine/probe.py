"""What this machine does per second, measured in about a second each."""

import platform
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from penstock.memory.buffers import aligned_buffer
from penstock.memory.direct import DirectReader
from penstock.model.pages import SECTOR, Extent

_PROBE_READ_BYTES = 32 << 20


def probe_gemm(dtype: torch.dtype, rows: int, seconds: float = 1.0, width: int = 2048) -> float:
    """FLOP/s of ``rows`` activations times (2 · width, width) matrices of ``dtype``, in turn, as layers would be."""
    matrices = [torch.randn(2 * width, width).to(dtype) for _ in range(4)]
    hidden = torch.randn(rows, width).to(dtype)
    torch.nn.functional.linear(hidden, matrices[0])  # the first product pays for the library's start
    calls = 0
    start = time.perf_counter()
    while calls == 0 or time.perf_counter() - start < seconds:
        torch.nn.functional.linear(hidden, matrices[calls % len(matrices)])
        calls += 1
    return calls * 2 * rows * width * 2 * width / (time.perf_counter() - start)


def probe_disk(
    source: str | Path | Sequence[Extent], seconds: float = 1.0, reader: DirectReader | None = None
) -> float:
    """Bytes per second of direct reads from an existing file, or from the files of some extents.

    Raises UserError where a file cannot be read.
    """
    ranges = _whole(source) if isinstance(source, str | Path) else [(e.path, e.offset, e.nbytes) for e in source]
    batches = [
        Extent(path, offset + at, min(_PROBE_READ_BYTES, nbytes - at), (offset + at) % SECTOR)
        for path, offset, nbytes in ranges
        for at in range(0, nbytes, _PROBE_READ_BYTES)
    ]
    if not batches:
        raise ValueError("no bytes to read")
    with ExitStack() as owned:
        if reader is None:
            reader = DirectReader()
            owned.callback(reader.close)
        buffer = aligned_buffer(_PROBE_READ_BYTES + SECTOR)
        buffer.zero_()  # touched beforehand, as a slot is
        done = turn = 0
        start = time.perf_counter()
        while turn == 0 or time.perf_counter() - start < seconds:
            done += reader.read([batches[turn % len(batches)]], buffer)
            turn += 1
        return done / (time.perf_counter() - start)


def cpu_computes_bfloat16(cpuinfo: str | Path = "/proc/cpuinfo") -> bool:
    """Whether the CPU has bf16 arithmetic (AVX-512 BF16, AMX, ARM BF16); without it bf16 products are very slow."""
    path = Path(cpuinfo)
    if path.exists():
        lines = (line.partition(":") for line in path.read_text().splitlines())
        flags = {flag for name, _, value in lines if name.strip() in ("flags", "Features") for flag in value.split()}
        return not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return platform.machine() in ("x86_64", "AMD64") and supported is not None and bool(supported())


def _whole(path: str | Path) -> list[tuple[str, int, int]]:
    file = Path(path)
    return [(str(file), 0, file.stat().st_size)]
