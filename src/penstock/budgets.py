"""What may be taken of each tier, and what is taken already."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from penstock.machine import limits
from penstock.memory.allocator import HeapWatch
from penstock.memory.device import Device
from penstock.plan.policy import TIERS, Tier
from penstock.plan.types import Ledger

_MARGIN = 0.04  # of a default budget, left to the system
_UNCOUNTED = 96 << 20  # library scratch (GEMM packing, allocator slack) that no ledger line names
_SLACK = 50  # one part in so many of the budget: holes in the heap, page tables
_EMULATED_GPU = 1 << 30


@dataclass(frozen=True, slots=True)
class Budgets:
    """Bytes asked for per tier, None where what is free holds; files on disk go to ``offload_root``.

    planned: what a saved plan was made for, which holds where nothing is asked for and as far as it is free.
    """

    asked: Mapping[Tier, int | None]
    device: Device
    offload_root: Path
    planned: Mapping[Tier, int] = field(default_factory=dict)

    @property
    def disk(self) -> int | None:
        """What files may take, None where what is free holds."""
        return self.planned.get("disk") if self.asked["disk"] is None else self.asked["disk"]

    def ledger(self, cached: int, held: int = 0) -> Ledger:
        """Budgets in force, as asked, planned or what is free less a margin, and what is taken of them now.

        cached: bytes of the page cache. held: of cpu memory, what prompts and answers will take.
        """
        if self.device.compute_tier == "cpu":
            from penstock.engine import decode_kernel, product_kernel  # noqa: F401  # numba's 100 MB count as taken
        resident = limits.resident_bytes()
        memory = min(limits.available_bytes() + resident, limits.memory_limit_bytes())
        disk = limits.free_disk_bytes(self.offload_root) + cached
        free: dict[Tier, int] = {
            "gpu": self._gpu_free(),
            "cpu": int(memory * (1 - _MARGIN)),
            "disk": int(disk * (1 - _MARGIN)),
        }
        held_to = {tier: min(free[tier], self.planned.get(tier, free[tier])) for tier in TIERS}
        budget = {tier: held_to[tier] if (asked := self.asked[tier]) is None else asked for tier in TIERS}
        taken: dict[Tier, int] = {"cpu": resident + held + _UNCOUNTED + budget["cpu"] // _SLACK, "disk": cached}
        return Ledger(budget, taken, {"cpu": 1 / _SLACK})

    def heap_watch(self, ledger: Ledger) -> HeapWatch:
        """Keeps the heap from growing into what is left uncounted."""
        return HeapWatch(ledger.budget["cpu"] - _UNCOUNTED)

    def _gpu_free(self) -> int:
        if self.device.torch_device.type == "cuda":
            free, _ = torch.cuda.mem_get_info()
            return int(free * (1 - _MARGIN))
        return _EMULATED_GPU if self.device.compute_tier == "gpu" else 0
