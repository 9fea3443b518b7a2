"""Where measurements compute: a device, the memory that the engine takes on it, and the arithmetics it would run."""

from dataclasses import dataclass
from math import ceil

import torch

from penstock.cuda.trial import works
from penstock.machine.limits import available_bytes
from penstock.machine.probe import cpu_computes_bfloat16
from penstock.memory.device import Device
from penstock.model.precision import Precision, choose
from penstock.profiling.caches import last_level_bytes
from penstock.quant.grouped import BITS, Grouped

_NOISE = (1 << 20) + 4099  # numbers drawn once and repeated: of no length that rows of a matrix have
_BEYOND_CACHE = 3  # times its size: what is used in turn is out of the cache by its next turn
_ROOM_SHARE = 4  # a measurement takes this part of what is free


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A dtype that products are computed in, and the one that their weights are stored in, or how they are packed."""

    compute: torch.dtype
    stored: torch.dtype | Grouped

    @property
    def name(self) -> str:
        """The key of ``Processor.products``: ``bfloat16``, or ``float32<bfloat16`` where weights are widened, and
        ``float32<int4`` or ``bfloat16<int4`` where they are unpacked."""
        compute, stored = str(self.compute).removeprefix("torch."), self.stored
        kept = f"int{stored.bits}" if isinstance(stored, Grouped) else str(stored).removeprefix("torch.")
        return compute if compute == kept else f"{compute}<{kept}"


@dataclass(frozen=True, slots=True)
class Place:
    """One device.

    cpu_bfloat16: whether the CPU has bf16 arithmetic. cache_bytes: of the device's last level of cache. room_bytes: of
    its memory that a measurement may take.
    """

    device: Device
    cpu_bfloat16: bool
    cache_bytes: int
    room_bytes: int

    @classmethod
    def of(cls, device: Device, room_bytes: int | None = None) -> "Place":
        """The device as it is; room_bytes: by default a part of what is free."""
        where = device.torch_device
        if where.type == "cuda":
            cache, free = torch.cuda.get_device_properties(where).L2_cache_size, torch.cuda.mem_get_info(where)[0]
        else:
            cache, free = last_level_bytes(), available_bytes()
        return cls(device, cpu_computes_bfloat16(), cache, room_bytes or free // _ROOM_SHARE)

    @property
    def auto(self) -> Precision:
        """What ``--dtype auto`` makes of a bfloat16 checkpoint here."""
        return self._chosen("auto", "bfloat16")

    def arithmetics(self, short: bool = False) -> tuple[Arithmetic, ...]:
        """Those that runs would use: ``auto``'s for any checkpoint, and unless ``short`` what ``--dtype`` may ask."""
        checkpoints = ("bfloat16", "float16", "float32")
        wishes = [("auto", own) for own in checkpoints]
        if not short:
            wishes += [("float32", own) for own in checkpoints] + [("bfloat16", "bfloat16")]
        chosen = [self._chosen(*wish) for wish in wishes]
        made = [Arithmetic(p.compute, p.stored) for p in chosen]
        if not short:
            made += [Arithmetic(self.auto.compute, form) for form in map(Grouped, BITS) if self._unpacks(form)]
        return tuple(dict.fromkeys(made))

    def noise(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """``count`` numbers in [-1, 1) in memory such as pages and KV arenas take."""
        memory = self.device.alloc(count * dtype.itemsize).view(dtype)
        some = torch.empty(min(count, _NOISE)).uniform_(-1, 1).to(self.device.torch_device, dtype)
        for at in range(0, count, _NOISE):
            memory[at : at + _NOISE].copy_(some[: count - at])
        return memory

    def copies(self, nbytes: int) -> int:
        """How many things of so many bytes exceed the cache when they are used in turn, if there is room for them."""
        return max(1, min(ceil(_BEYOND_CACHE * self.cache_bytes / nbytes), self.room_bytes // nbytes))

    def settle(self) -> None:
        """Wait for what was issued."""
        if self.device.torch_device.type == "cuda":
            torch.cuda.synchronize(self.device.torch_device)

    def _unpacks(self, form: Grouped) -> bool:
        """Whether products of weights that are packed so have a kernel here."""
        return self.device.compute_tier == "cpu" or works(form, self.auto.compute, self.device.torch_device)

    def _chosen(self, asked: str, checkpoint: str) -> Precision:
        return choose(asked, checkpoint, self.device.torch_device.type, self.cpu_bfloat16)
