"""What is compiled is kept for other processes, and one at a time keeps it."""

import fcntl
import importlib
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numba import types

import penstock
from penstock.compiled.kernels import compiled
from penstock.directories import kernel_directory

MODULE = "def add(a, b):\n    return a + b\n"
WAYS = {
    "when it is made": "compiled(add, types.int64(types.int64, types.int64), directory=directory)",
    "when it is called": "compiled(add, directory=directory)",
    "of the simulator": "kept(add)",
}
CODE = """
from pathlib import Path
from numba import types
from added import add
from penstock.compiled.kernels import compiled
from penstock.sim import kernel_cache
from penstock.sim.kernel_cache import kept

directory = kernel_cache._home()
print(directory, flush=True)
made = {way}
print(made(2, 3), sum(made.stats.cache_hits.values()), flush=True)
"""

each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def started(way: str, directory: Path) -> subprocess.Popen[str]:
    (directory / "added.py").write_text(MODULE)
    paths = os.pathsep.join([str(directory), *sys.path])
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(directory / "kept"), "PYTHONPATH": paths}
    code = CODE.format(way=way)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


@each_way
def test_the_next_process_finds_what_was_compiled(way, tmp_path):
    said = [started(way, tmp_path).communicate()[0].splitlines()[1] for _ in range(2)]
    assert said == ["5 0", "5 1"]


@each_way
def test_processes_compile_one_after_the_other(way, tmp_path):
    with started(way, tmp_path) as process:
        assert process.stdout is not None
        directory = Path(process.stdout.readline().strip())
        process.communicate()
    with open(directory / "lock", "ab") as lock, started(way, tmp_path) as process:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert process.stdout is not None
        process.stdout.readline()
        assert not select.select([process.stdout], [], [], 1.0)[0], "it compiled while another process did"
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert process.stdout.readline() == "5 1\n"


def test_what_is_kept_leaves_with_the_sources_that_it_was_made_of(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    source = tmp_path / "emitter.py"
    source.write_text("1")
    before = kernel_directory([source])
    source.write_text("2")
    assert before.parent == tmp_path
    assert kernel_directory([source]) != before


@pytest.mark.parametrize("own", [None, "elsewhere"])
def test_compiled_code_is_kept_in_the_users_cache(own, tmp_path):
    kept = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "PENSTOCK_CACHE")}
    environment = kept | {"XDG_CACHE_HOME": str(tmp_path)} | ({"NUMBA_CACHE_DIR": str(tmp_path / own)} if own else {})
    code = "from penstock.engine.decode_kernel import _compiled; _compiled('float32', 1)"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    home = tmp_path / (own or "penstock/numba")
    assert list(home.rglob("decode_kernel._decode-*.nbi"))


def _sum_of_squares(numbers):
    total = 0.0
    for number in numbers:
        total += number * number
    return total


def test_an_interruption_waits_for_the_compiler(tmp_path):
    """Inside of it Ctrl-C would be lost, or leave a kernel half made."""
    signature = types.float64(types.Array(types.float64, 1, "C"))
    timer = threading.Timer(0.03, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        compiled(_sum_of_squares, signature, directory=tmp_path)
    timer.join()
    assert list(tmp_path.rglob("*.nbc"))
    assert compiled(_sum_of_squares, signature, directory=tmp_path)(np.arange(3.0)) == 5.0


def test_what_a_kept_kernel_is_made_of_is_known_where_it_is_kept():
    """A kernel is compiled anew when its own file changes, or one of those that name its directory."""
    root = Path(penstock.__file__).parent
    keeps = [path for path in root.rglob("*.py") if "import compiled\n" in path.read_text()]
    names = [".".join(["penstock", *path.relative_to(root).with_suffix("").parts]) for path in keeps]
    assert len(names) > 8
    for name in names:
        for made_of in vars(importlib.import_module(name)).values():
            function = getattr(made_of, "py_func", None) or getattr(made_of, "_defn", None)
            if function is not None:
                known = ("penstock.compiled.", "penstock.quant.", name, "numba.")
                assert function.__module__.startswith(known), f"{name} keeps {function.__qualname__} of elsewhere"
