import psutil
import pytest

from penstock.machine.limits import (
    available_bytes,
    free_disk_bytes,
    memory_limit_bytes,
    peak_resident_bytes,
    resident_bytes,
)

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path):
    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return tmp_path

    write(
        {"proc/meminfo": f"MemTotal:       {16 * GIB // 1024} kB\nMemFree: 5 kB\nMemAvailable: {12 * GIB // 1024} kB"}
    )
    return write


def test_no_cgroup_is_physical_memory(machine):
    root = machine({})
    assert memory_limit_bytes(root) == 16 * GIB
    assert available_bytes(root) == 12 * GIB


def test_v2_takes_the_tightest_level_above(machine):
    root = machine(
        {
            "proc/self/cgroup": "0::/user/job",
            "sys/fs/cgroup/user/job/memory.max": "max",
            "sys/fs/cgroup/user/memory.max": 3 * GIB,
            "sys/fs/cgroup/user/memory.current": 2 * GIB,
            "sys/fs/cgroup/user/memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file 4",
            "sys/fs/cgroup/memory.max": 8 * GIB,
        }
    )
    assert memory_limit_bytes(root) == 3 * GIB
    assert available_bytes(root) == 2 * GIB


def test_v1_unlimited_is_no_limit(machine):
    root = machine(
        {
            "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/box",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": 9223372036854771712,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712,
        }
    )
    assert memory_limit_bytes(root) == 16 * GIB
    assert available_bytes(root) == 12 * GIB


def test_v1_limit_seen_from_inside_a_container(machine):
    root = machine(
        {
            "proc/self/cgroup": "4:memory:/docker/0123",  # a path of the host that the mount does not show
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 2 * GIB,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": GIB + 5,
            "sys/fs/cgroup/memory/memory.stat": "cache 9\ntotal_inactive_file 5",
        }
    )
    assert memory_limit_bytes(root) == 2 * GIB
    assert available_bytes(root) == GIB


def test_hybrid_hierarchy(machine):
    root = machine({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/unified/a/memory.max": GIB})
    assert memory_limit_bytes(root) == GIB


def test_a_limit_above_physical_memory_changes_nothing(machine):
    root = machine({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": 64 * GIB})
    assert memory_limit_bytes(root) == 16 * GIB


def test_this_machine():
    assert 0 < available_bytes() <= memory_limit_bytes() <= psutil.virtual_memory().total
    resident = resident_bytes()
    assert abs(resident - psutil.Process().memory_info().rss) < 32 << 20
    before = peak_resident_bytes()
    block = bytearray(resident + (64 << 20))
    assert peak_resident_bytes() >= max(before, len(block))


def test_free_disk_where_nothing_is_yet(tmp_path):
    assert free_disk_bytes(tmp_path / "not" / "yet") == pytest.approx(psutil.disk_usage(str(tmp_path)).free, rel=0.05)
