"""What every test stands on: no network, no GPU unless there is one, a cache of the session's own."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# read by libraries when they are imported, so set before any test module is
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# compiled kernels outlive the session: compiling them takes longer than most tests
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "numba"))
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # without a CUDA device its kernels run on the CPU, slowly


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background has it, and all processes begun here
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # xdist reads groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one worker have all that needs the simulator's kernels, which else are compiled once in each; skip tests
    marked ``gpu`` where torch finds no CUDA device: it is imported only if there are such tests."""
    for item in items:
        if item.path.parent.name == "sim" or item.path.name == "test_simulate.py":
            item.add_marker(pytest.mark.xdist_group("kernels"))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache directory for this session; page caches and remembered self-checks go there."""
    home = tmp_path_factory.mktemp("cache")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(home))
    patch.setenv("PENSTOCK_CACHE", str(home / "penstock"))
    yield home
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def stored_profile(cache_home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A profile of this host that was never measured: tests plan with it instead of measuring for 15 seconds."""
    from penstock.machine.presets import preset
    from penstock.profiling.disk import Disk, mount_of
    from penstock.profiling.profile import Host, Profile, gpu_name, now_utc, versions
    from penstock.profiling.profile_file import save_profile

    machine = preset("skylake-2core")
    read, write = machine.links["disk→cpu"], machine.links["cpu→disk"]
    places = (tmp_path_factory.getbasetemp(), cache_home, Path.cwd(), Path.home(), Path("/"))
    disks = {mount: Disk(mount, read, write, read.bytes_per_s, write.bytes_per_s) for mount in map(mount_of, places)}
    host = Host.here(gpu_name())
    profile = Profile(host, now_utc(), "short", 15.0, versions(), machine, disks)
    save_profile(profile, cache_home / "penstock" / "profile.json")


@pytest.fixture(scope="session", autouse=True)
def torch_threads() -> None:
    """Share the cores among xdist's workers instead of letting each take them all."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How often tokens parted from transformers' where the two best logits were within rounding."""
    said = [dict(report.user_properties) for report in terminalreporter.getreports("passed")]
    counts = [properties["near_ties"] for properties in said if "near_ties" in properties]
    if counts:
        parted, tokens = (sum(column) for column in zip(*counts, strict=True))
        terminalreporter.write_line(
            f"parity: {len(counts)} comparisons, {tokens:,} tokens; {parted} rows parted at a near-tie"
        )
    for properties in said:
        if "agreement" in properties:
            terminalreporter.write_line(f"parity: {properties['agreement']}")
