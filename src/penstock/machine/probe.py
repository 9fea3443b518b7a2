"""What the cpu of this machine can do."""

import platform
from pathlib import Path

import torch


def cpu_computes_bfloat16(cpuinfo: str | Path = "/proc/cpuinfo") -> bool:
    """Whether the CPU has bf16 arithmetic (AVX-512 BF16, AMX, ARM BF16); without it bf16 products are very slow."""
    path = Path(cpuinfo)
    if path.exists():
        lines = (line.partition(":") for line in path.read_text().splitlines())
        flags = {flag for name, _, value in lines if name.strip() in ("flags", "Features") for flag in value.split()}
        return not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return platform.machine() in ("x86_64", "AMD64") and supported is not None and bool(supported())
