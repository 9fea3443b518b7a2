"""Host memory for pages: aligned, taken only when touched, and typed views into it."""

import mmap
from collections.abc import Callable
from contextlib import suppress

import torch

from penstock.model.pages import Slice
from penstock.quant.forms import named
from penstock.quant.packed import Packed


def aligned_buffer(nbytes: int, pinned: bool = False, huge: bool = False) -> torch.Tensor:
    """A uint8 tensor of ``nbytes`` on a page boundary; physical memory is taken as it is written to.

    pinned: page-locked for CUDA, at once and in exactly this size (torch's own pinned allocator rounds up to a power of
    two). huge: in pages of 2 MiB, which walks over matrices are faster in; memory is taken in these then. It goes back
    when the last view of it dies.
    """
    if nbytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    memory = _PinnedMap if pinned else mmap.mmap
    block = memory(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            block.madvise(mmap.MADV_HUGEPAGE)
    buffer = torch.frombuffer(block, dtype=torch.uint8)
    if isinstance(block, _PinnedMap):
        block.pin(buffer.data_ptr())
    return buffer


def view(buffer: torch.Tensor, piece: Slice) -> torch.Tensor | Packed:
    """The parameter (or part of one) that lies at ``piece.offset`` of a uint8 buffer, in its own shape and dtype.

    It shares the buffer's memory, except where the offset is no multiple of the item size: then it is a copy.
    """
    raw = buffer[piece.offset : piece.offset + piece.nbytes]
    if (form := named(piece.dtype)) is not None:
        return Packed(form, piece.shape[-1], raw.view(*piece.shape[:-1], -1))
    dtype: torch.dtype = getattr(torch, piece.dtype)
    if raw.storage_offset() % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).view(piece.shape)


class _PinnedMap(mmap.mmap):
    """Anonymous memory that is registered with CUDA until just before it is unmapped."""

    _unpin: Callable[[], object] | None = None

    def pin(self, address: int) -> None:
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch leaves it so
        torch.cuda.check_error(runtime.cudaHostRegister(address, len(self), 0))
        self._unpin = lambda: runtime.cudaHostUnregister(address)

    def __del__(self) -> None:
        if self._unpin is not None:
            self._unpin()
