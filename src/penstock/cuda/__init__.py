"""Triton's kernels for packed weights, on CUDA devices that they work on; only ``trial`` may be imported without it."""
