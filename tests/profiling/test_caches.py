from pathlib import Path

from penstock.profiling.caches import last_level_bytes


def add(root: Path, cpu: int, index: int, level: int, shared: str, size: str) -> None:
    directory = root / f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
    directory.mkdir(parents=True)
    for name, text in (("level", str(level)), ("shared_cpu_list", shared), ("size", size)):
        (directory / name).write_text(text + "\n")


def test_all_caches_of_the_highest_level_together(tmp_path: Path) -> None:
    for cpu, shared in ((0, "0-1"), (1, "0-1"), (2, "2-3")):
        add(tmp_path, cpu, 0, 1, str(cpu), "32K")
        add(tmp_path, cpu, 3, 3, shared, "16M")
    assert last_level_bytes(tmp_path) == 32 << 20


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert last_level_bytes(tmp_path) >= 16 << 20
