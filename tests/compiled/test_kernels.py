"""What is compiled is kept for other processes, and one at a time keeps it."""

import fcntl
import os
import select
import subprocess
import sys
from pathlib import Path

MODULE = "def add(a, b):\n    return a + b\n"
CODE = """
import numba
from numba import types
from added import add
from penstock.compiled.kernels import compiled

print(numba.config.CACHE_DIR, flush=True)
made = compiled(add, types.int64(types.int64, types.int64))
print(made(2, 3), sum(made.stats.cache_hits.values()), flush=True)
"""


def started(directory: Path) -> subprocess.Popen[str]:
    (directory / "added.py").write_text(MODULE)
    paths = os.pathsep.join([str(directory), *sys.path])
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(directory / "kept"), "PYTHONPATH": paths}
    return subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, text=True, env=environment)


def test_the_next_process_finds_what_was_compiled(tmp_path):
    said = [started(tmp_path).communicate()[0].splitlines()[1] for _ in range(2)]
    assert said == ["5 0", "5 1"]


def test_processes_compile_one_after_the_other(tmp_path):
    with started(tmp_path) as process:
        assert process.stdout is not None
        directory = Path(process.stdout.readline().strip())
        process.communicate()
    with open(directory / "lock", "ab") as lock, started(tmp_path) as process:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert process.stdout is not None
        process.stdout.readline()
        assert not select.select([process.stdout], [], [], 1.0)[0], "it compiled while another process did"
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert process.stdout.readline() == "5 1\n"
