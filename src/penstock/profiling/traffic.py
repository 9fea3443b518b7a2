"""Everything between two products of a layer, as transformers' Llama does it, timed by itself."""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from penstock.engine.attention import append
from penstock.engine.call_tables import CallTables
from penstock.plan.traffic import traffic_bytes
from penstock.profiling.attention import BLOCK_TOKENS, Heads, kv_arenas
from penstock.profiling.place import Place
from penstock.profiling.timing import median_s

TOKENS = 256
HIDDEN, FFN = 2048, 8192
WIDTHS = Heads(16, 8)


@torch.inference_mode()
def measure_traffic(place: Place, budget_s: float, tokens: int = TOKENS, hidden: int = HIDDEN, ffn: int = FFN) -> float:
    """Bytes per second, in the bytes that ``traffic_bytes`` counts, of calls of so many tokens."""
    rest = LayerRest(place, tokens, hidden, ffn)

    def work() -> None:
        rest.compute()
        place.settle()

    widths = (WIDTHS.queries + 2 * WIDTHS.kv) * WIDTHS.dim
    counted = tokens * traffic_bytes(hidden, widths, ffn, place.auto.compute.itemsize)
    return counted / median_s(work, budget_s)


class LayerRest:
    """A layer without its products and its attention; what these would give is made beforehand."""

    def __init__(self, place: Place, tokens: int, hidden: int, ffn: int) -> None:
        self._place, self._tokens = place, tokens
        where, dtype = place.device.torch_device, place.auto.compute
        self._norm = LlamaRMSNorm(hidden).to(where, dtype)
        self._act: nn.Module = ACT2FN["silu"]
        self._residual, self._attended, self._down = (self._given(hidden) for _ in range(3))
        self._q, self._k, self._v = (
            self._given(heads * WIDTHS.dim) for heads in (WIDTHS.queries, WIDTHS.kv, WIDTHS.kv)
        )
        self._gate, self._up = (self._given(ffn) for _ in range(2))
        self._cos, self._sin = (self._given(WIDTHS.dim) for _ in range(2))
        blocks = -(-tokens // BLOCK_TOKENS)
        self._tables = CallTables.build([(0, tokens)], [list(range(blocks))], BLOCK_TOKENS, where)
        self._k_arena, self._v_arena = kv_arenas(place, WIDTHS, blocks)

    def compute(self) -> None:
        """Do it once."""
        self._norm(self._residual)
        q, k, v = (x.view(1, self._tokens, -1, WIDTHS.dim).transpose(1, 2) for x in (self._q, self._k, self._v))
        _, k = apply_rotary_pos_emb(q, k, self._cos, self._sin)
        append(k[0], v[0], self._k_arena, self._v_arena, self._tables)
        residual = self._residual + self._attended
        self._norm(residual)
        self._act(self._gate) * self._up  # what is measured is the time it takes
        residual + self._down

    def _given(self, width: int) -> torch.Tensor:
        numbers = self._place.noise(self._tokens * width, self._place.auto.compute)
        return numbers.view(1, self._tokens, width)
