"""Sizes of the processor's caches: what a measurement must exceed, as the layers of a model do."""

from pathlib import Path

from penstock.units import parse_bytes

_UNKNOWN_BYTES = 64 << 20  # where the system does not say: more than most desktops have


def last_level_bytes(root: str | Path = "/") -> int:
    """All caches of the highest level together; ``root`` is where ``/sys`` is found."""
    found: dict[tuple[int, str], int] = {}
    for index in Path(root, "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        files = [index / name for name in ("level", "shared_cpu_list", "size")]
        if all(file.is_file() for file in files):
            level, shared, size = (file.read_text().strip() for file in files)
            found[int(level), shared] = parse_bytes(size.replace("K", "KiB").replace("M", "MiB"))
    highest = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == highest) or _UNKNOWN_BYTES
