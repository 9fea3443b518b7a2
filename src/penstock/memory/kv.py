"""The KV cache in blocks on any tier: integers from the scheduler become bytes here."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from penstock.errors import UserError
from penstock.memory.buffers import aligned_buffer
from penstock.memory.clock import Clock, Lane
from penstock.memory.device import Device
from penstock.memory.direct import Arrival
from penstock.memory.kv_form import Arenas, KVForm, KVGroup, KVLayer, Wide
from penstock.memory.open_blocks import OpenBlocks
from penstock.memory.scratch_file import ScratchFile
from penstock.plan.policy import Tier
from penstock.schedule.types import Block, Move


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a layer's blocks lie in its group's arena: block i at ``base + i · stride``."""

    group: int
    layer: KVLayer
    base: int
    stride: int


class Fetch(Protocol):
    """KV on its way into a staging buffer."""

    def result(self) -> None:
        """Waits for it; raises what went wrong."""

    def exception(self) -> BaseException | None:
        """Waits until nothing is written any more; what went wrong."""


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Blocks that are read in one go."""

    arrival: Arrival
    clock: Clock

    def result(self) -> None:
        self.arrival.result()
        self.clock.count("disk→cpu", *self.arrival.span, self.arrival.nbytes, "kv")

    def exception(self) -> BaseException | None:
        try:
            self.arrival.result()
        except UserError as error:
            return error
        return None


class KVStore:
    """Arenas of blocks per tier and group, layer by layer.

    capacity: bytes the scheduler may use per tier. tier: where new keys are written, the device's own if None;
    torch_device: where that is. rows: in flight at most, which counts where full blocks are packed: ``open`` has the
    newest block of each then, and is None where not. Host arenas are reserved addresses whose memory
    is taken when first written, and the scheduler hands out the lowest free id, so that what is used is what was needed
    at most.
    """

    def __init__(
        self,
        groups: Sequence[KVGroup],
        form: KVForm,
        capacity: Mapping[Tier, int],
        device: Device,
        clock: Clock,
        offload_dir: Path | None = None,
        rows: int = 0,
        tier: Tier | None = None,
    ) -> None:
        self.groups, self.form = tuple(groups), form
        self.device, self.clock = device, clock
        self.tier = tier or device.compute_tier
        self.torch_device = device.torch_device if self.tier == device.compute_tier else torch.device("cpu")
        self.specs = [group.spec(form) for group in groups]
        layers = {index: layer for group in groups for index, layer in group.layers.items()}
        self.open = OpenBlocks(layers, form, rows, self._alloc) if form.packed is not None else None
        self._places: dict[int, dict[Tier, _Place]] = {}
        self._arenas: dict[tuple[Tier, int], torch.Tensor] = {}
        self._files: dict[int, ScratchFile] = {}
        with ExitStack() as undo:
            undo.callback(self.close)
            for tier, nbytes in capacity.items():
                for index, spec in enumerate(self.specs):
                    count = nbytes // spec.block_bytes if spec.block_bytes else 0
                    if count:
                        self._reserve(tier, index, count, offload_dir)
            undo.pop_all()
        self._views: dict[tuple[int, Tier], Arenas] = {}

    def _alloc(self, nbytes: int, sparse: bool) -> torch.Tensor:
        """Memory of the tier where new keys are written. sparse: much of it may never be written to."""
        if self.tier == self.device.compute_tier:
            return self.device.alloc(nbytes, sparse)
        return aligned_buffer(nbytes, huge=not sparse)  # as where the cpu alone computes

    def _reserve(self, tier: Tier, index: int, count: int, offload_dir: Path | None) -> None:
        base = 0
        for layer_index, layer in self.groups[index].layers.items():
            stride = layer.block_bytes(self.form)
            self._places.setdefault(layer_index, {})[tier] = _Place(index, layer, base, stride)
            base += stride * count
        if tier == "disk":
            if offload_dir is None:
                raise ValueError("KV on disk needs a directory")
            # each group may take all of the tier's bytes, all groups together not more than that
            sparse = len(self.groups) > 1
            self._files[index] = ScratchFile(offload_dir / f"kv-{index}", base, sparse=sparse)
        elif tier == self.tier:
            self._arenas[tier, index] = self._alloc(base, len(self.groups) > 1)
        else:
            self._arenas[tier, index] = aligned_buffer(base, pinned=self.device.torch_device.type == "cuda")

    def group_of(self, layer: int) -> int:
        """The group that a cache layer belongs to."""
        return next(i for i, group in enumerate(self.groups) if layer in group.layers)

    def layer(self, index: int) -> KVLayer:
        """A cache layer's heads and widths."""
        return self.groups[self.group_of(index)].layers[index]

    @property
    def block_tokens(self) -> int:
        """Tokens of a block."""
        return self.form.tokens

    def arenas(self, layer: int, tier: Tier | None = None) -> Arenas:
        """A layer's blocks in the memory of a tier, that of new keys if None, as ``KVLayer.views`` has them."""
        tier = tier or self.tier
        if (layer, tier) not in self._views:
            place = self._places[layer][tier]
            arena = self._arenas[tier, place.group]
            self._views[layer, tier] = place.layer.views(arena, self.form, place.base, self._count(place, tier))
        return self._views[layer, tier]

    def opened(self, layer: int) -> Wide:
        """A layer's open blocks, as ``OpenBlocks.arenas`` has them; RuntimeError where blocks are never packed."""
        if self.open is None:
            raise RuntimeError("there are open blocks only where full ones are packed")
        return self.open.arenas(layer)

    def _count(self, place: _Place, tier: Tier) -> int:
        total = self._arenas[tier, place.group].numel()
        per_id = sum(p.block_bytes(self.form) for p in self.groups[place.group].layers.values())
        return total // per_id

    def move(self, moves: Sequence[Move]) -> None:
        """Copy blocks between tiers, all layers of their group, in this order, and wait until they are there."""
        pending: list[Future[None]] = []
        busy: set[tuple[int, Tier, int]] = set()
        try:
            for move in moves:
                places = {(move.group, *move.source), (move.group, *move.target)}
                if places & busy:  # a place that an earlier move still reads or writes
                    self._finish(pending)
                    pending, busy = [], set()
                for layer in self.groups[move.group].layers:
                    pending += self._copy(layer, move.source, move.target)
                busy |= places
            self._finish(pending)
        finally:  # nothing may be under way to a place that others get, be it after an error or Ctrl-C
            wait(pending)

    def _finish(self, pending: Sequence["Future[None]"]) -> None:
        if pending:
            with self.clock.wait("cpu→disk"):
                for copied in pending:
                    copied.result()

    def _copy(self, layer: int, source: tuple[Tier, int], target: tuple[Tier, int]) -> list["Future[None]"]:
        (from_tier, from_id), (to_tier, to_id) = source, target
        there, here = self._places[layer][to_tier], self._places[layer][from_tier]
        if from_tier == "disk":
            return [self._read(here, from_id, self._bytes(layer, target))]
        block = self._bytes(layer, source)
        if to_tier == "disk":
            host = block if block.device.type == "cpu" else block.cpu()
            lane = self._opened("cpu→disk", here.stride)
            written = self._files[there.group].write(there.base + to_id * there.stride, host)
            written.add_done_callback(lane)
            return [written]
        with self.clock.lane("gpu→cpu" if from_tier == "gpu" else "cpu→gpu", here.stride, "kv"):
            self._bytes(layer, target).copy_(block)
        return []

    def _read(self, place: _Place, block: int, into: torch.Tensor) -> "Future[None]":
        lane = self._opened("disk→cpu", place.stride)
        read = self._files[place.group].read_into(place.base + block * place.stride, into)
        read.add_done_callback(lane)
        return read

    def _opened(self, lane: Lane, nbytes: int) -> Callable[["Future[None]"], None]:
        """A lane that is busy from now until what is returned is called."""
        open_ = ExitStack()
        open_.enter_context(self.clock.lane(lane, nbytes, "kv"))
        return lambda _: open_.close()

    def _bytes(self, layer: int, place: tuple[Tier, int]) -> torch.Tensor:
        tier, block = place
        at = self._places[layer][tier]
        return self._arenas[tier, at.group][at.base + block * at.stride : at.base + (block + 1) * at.stride]

    def fetch(self, layer: int, blocks: Sequence[Block], into: torch.Tensor) -> list["Fetch"]:
        """Bring blocks from other tiers of one layer into consecutive places of a staging buffer.

        Returns what is still under way.
        """
        pending: list[Fetch] = []
        on_disk: list[tuple[int, int]] = []
        for position, block in enumerate(blocks):
            place = self._places[layer][block.tier]
            target = into[position * place.stride : (position + 1) * place.stride]
            if block.tier != "disk":
                with self.clock.lane("cpu→gpu", place.stride, "kv"):
                    target.copy_(self._bytes(layer, (block.tier, block.id)))
            elif into.device.type == "cpu":
                on_disk.append((place.base + block.id * place.stride, position * place.stride))
            else:
                pending.append(self._read(place, block.id, target))
        if on_disk:
            place = self._places[layer]["disk"]
            pending.append(_Blocks(self._files[place.group].read_blocks(on_disk, place.stride, into), self.clock))
        return pending

    def stride(self, layer: int) -> int:
        """Bytes of one block of a layer."""
        return next(iter(self._places[layer].values())).stride

    def staged_views(self, layer: int, staging: torch.Tensor, count: int) -> Arenas:
        """``count`` blocks of a layer in a staging buffer, as keys and values."""
        return self.layer(layer).views(staging, self.form, 0, count)

    def forget(self, row: int) -> None:
        """Free what a row keeps beside its blocks."""
        if self.open is not None:
            self.open.forget(row)

    @property
    def disk_bytes(self) -> int:
        """Disk space that is taken, which only grows."""
        return sum(file.taken_bytes for file in self._files.values())

    def close(self) -> None:
        """Give back files; nothing is left on disk."""
        for file in self._files.values():
            file.close()
        self._files.clear()
