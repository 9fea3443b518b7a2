"""How long `penstock simulate` takes, by what it goes to, and the most memory that all its processes hold together.

    python benchmarks/simulate.py                     seed-004-mha at skip 0.3, all pairs, on all cores
    python benchmarks/simulate.py --scenario reasoning-70b --jobs 2 --warm

Compiled kernels are kept between runs; `--warm` runs a small grid first, so that compiling is not counted.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

_SMALL = [
    "--set",
    "prefill_tokens=64,decode_tokens=32,layers=2,parameters=1e6,kv_token_bytes=2048,hbm_capacity_bytes=2200000",
]
_SAMPLE_EVERY_S = 0.2


def main() -> int:
    """Run the command and print its own account of the time, wall seconds and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="seed-004-mha")
    parser.add_argument("--skip", default="0.3", help="skip levels, parted by commas")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--warm", action="store_true", help="compile the kernels first")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        if given.warm:
            _run(["seed-004", *_SMALL, "--skip", "0.3", "--output", str(Path(directory) / "warm")])
        words = [given.scenario, "--skip", given.skip, "--jobs", str(given.jobs)]
        account, wall_s, peak_bytes = _run([*words, "--output", str(Path(directory) / "out")])
    print(f"penstock simulate {' '.join(words)}")
    print(f"{account}\nwall {wall_s:.1f} s · {peak_bytes / 2**30:.2f} GiB at most, all processes together")
    return 0


def _run(words: list[str]) -> tuple[str, float, int]:
    """The last line that the command told, its wall seconds, and the most bytes its processes held at once."""
    start_s = time.perf_counter()
    with tempfile.TemporaryFile("w+") as told:
        command = [sys.executable, "-m", "penstock", "simulate", *words]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told)
        peak_bytes = 0
        while process.poll() is None:
            peak_bytes = max(peak_bytes, _held(process.pid))
            time.sleep(_SAMPLE_EVERY_S)
        wall_s = time.perf_counter() - start_s
        told.seek(0)
        lines = told.read().splitlines()
    if process.returncode:
        raise SystemExit("\n".join(lines) or f"the command ended with status {process.returncode}")
    return lines[-1], wall_s, peak_bytes


def _held(pid: int) -> int:
    """Private and shared bytes of a process and its children, shared pages counted once by their proportional part."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            total += process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        pass  # a process ended while it was looked at
    return total


if __name__ == "__main__":
    sys.exit(main())
