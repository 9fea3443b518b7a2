"""Rows of ggml's blocks to test with: every bit of them drawn, but numbers in half precision that are sensible."""

import gguf
import numpy as np

SPREAD = {"q4_k": 257, "q5_k": 520, "q6_k": 1368}  # of elements where a superblock's scale is 1
MINIMUM = {"q4_k": 7.5, "q5_k": 15.5}  # times the scale: elements are about 0 on average


def blocks(kind: str, rows: int, columns: int, scale: float = 0.05, seed: int = 0) -> np.ndarray:
    """Rows (rows, bytes) of elements that are about 0, give or take ``scale``. kind: as GGUF calls it."""
    draw, kind = np.random.default_rng(seed), kind.lower()
    quantisation = gguf.GGMLQuantizationType[kind.upper()]
    if kind not in SPREAD:
        return gguf.quants.quantize(draw.normal(scale=scale, size=(rows, columns)).astype(np.float32), quantisation)
    elements, nbytes = gguf.GGML_QUANT_SIZES[quantisation]
    stored = draw.integers(0, 256, (rows, columns // elements, nbytes), np.uint8)
    scales = draw.uniform(0.5, 1.5, (*stored.shape[:2], 1)) * scale / SPREAD[kind]
    numbers = np.concatenate([scales, scales * MINIMUM.get(kind, 0)], 2).astype(np.float16).view(np.uint8)
    if kind == "q6_k":
        stored[..., -2:] = numbers[..., :2]
    else:
        stored[..., :4] = numbers
    return stored.reshape(rows, -1)
