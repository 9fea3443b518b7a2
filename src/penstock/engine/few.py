"""Products of few tokens on the CPU: one pass over the weights, held by memory, and nothing widened is written.

For more tokens, ``product_kernel`` widens a panel once for a tile of them, or unpacked weights meet torch's product.
"""

import torch

from penstock.compiled.pairs import in_pairs
from penstock.compiled.threads import PART_BYTES, PARTS, even
from penstock.engine import few_kernel, pair_kernel
from penstock.engine.operand import Operand, kind
from penstock.quant.packed import Packed
from penstock.quant.rows import BLOCK

MOST, MOST_PAIRS = 8, 32  # tokens, in float32 and where pairs are multiplied
STEP = 8  # rows of weights: parts are whole multiples of it, and it is one of each tile's rows


def _paired(x: torch.Tensor, weight: torch.Tensor | Packed) -> bool:
    """Whether they are multiplied in pairs: activations of bfloat16, and weights that it holds as they are stored."""
    return x.dtype == torch.bfloat16 and in_pairs(weight.form.record if isinstance(weight, Packed) else kind(weight))


def takes_few(x: torch.Tensor, weight: torch.Tensor | Packed) -> bool:
    """Whether tokens x (T, in) are so few, and the rows of weights, 16-bit or packed, are read by whole blocks.

    Where both have 16 bits torch's own product is the other choice, and only pairs are faster.
    """
    if x.shape[0] > MOST_PAIRS:
        return False
    paired = _paired(x, weight)
    read = isinstance(weight, Packed) or (weight.shape[1] % BLOCK == 0 and (paired or x.dtype != weight.dtype))
    return read and (paired or x.shape[0] <= MOST)


def multiply_few(x: torch.Tensor, weight: torch.Tensor | Packed, out: torch.Tensor) -> None:
    """Write x (T, in) times weight (out, in) that ``takes_few`` to out (T, out), summed in float32.

    Rounded once where out is narrower.
    """
    weights, threads = Operand.of(weight), torch.get_num_threads()
    rows = len(weights.array)
    parts = max(1, min(threads * PARTS, rows // STEP, rows * weights.row_bytes // PART_BYTES))
    (pair_kernel if _paired(x, weight) else few_kernel).multiply(x, weights, out, even(rows, parts, STEP), threads)
