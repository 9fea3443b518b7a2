"""Where the tests of Triton's kernels run: on a CUDA device, or without one on the CPU in Triton's interpreter."""

import ctypes
import mmap

import pytest
import torch

from penstock.memory.buffers import aligned_buffer

triton = pytest.importorskip("triton", reason="Triton is not installed: make check-kernels runs these tests with it")
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7):
    pytest.skip("older interpreters do not loop up to an argument", allow_module_level=True)

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
if DEVICE.type == "cpu" and not triton.knobs.runtime.interpret:
    pytest.skip("no CUDA device that torch finds, and TRITON_INTERPRET=1 is not set", allow_module_level=True)


def sparse(nbytes: int) -> torch.Tensor:
    """Bytes of which few will be touched: on the CPU the others take no memory."""
    return torch.empty(nbytes, dtype=torch.uint8, device=DEVICE) if DEVICE.type == "cuda" else aligned_buffer(nbytes)


def last_bytes(data: torch.Tensor) -> torch.Tensor:
    """A copy at the very end of memory that may be read: on the CPU, what reads on ends the process."""
    if DEVICE.type == "cuda":
        return data.clone()
    room = -(-data.numel() // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = torch.frombuffer(mmap.mmap(-1, room + mmap.PAGESIZE), dtype=torch.uint8)
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(pages.data_ptr() + room), mmap.PAGESIZE, 0):
        raise OSError("mprotect")
    copy = pages[room - data.numel() : room].view(data.shape)
    copy.copy_(data)
    return copy
