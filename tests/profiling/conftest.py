import pytest

from penstock.memory.device import CpuDevice
from penstock.profiling.place import Place


@pytest.fixture
def place() -> Place:
    """The CPU, as one without bf16 arithmetic and with hardly any cache, so that measurements stay small."""
    return Place(CpuDevice(), cpu_bfloat16=False, cache_bytes=1 << 16, room_bytes=1 << 26)
