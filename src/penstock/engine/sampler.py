"""Drawing tokens from logits: what a row draws depends on its logits, seed, request and position alone.

Shapes: N rows, V tokens of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from penstock.sampling import Sampling

_CHUNK_BYTES = 64 * 2**20  # of float64 probabilities at a time
_NUCLEUS = 2048  # best tokens that top-p looks at before it sorts the whole vocabulary


@dataclass(frozen=True, slots=True)
class Draw:
    """One row's draw: how, for which request, and the position of the token that is drawn."""

    sampling: Sampling
    key: str
    position: int

    @property
    def uniform(self) -> float:
        """The draw's number in [0, 1), by hash of seed, request and position; a multiple of 2^-52."""
        said = f"{self.sampling.seed}\0{self.position}\0{self.key}".encode("utf-8", "surrogatepass")
        return (int.from_bytes(blake2b(said, digest_size=8).digest(), "big") >> 12) * 2.0**-52


def sample(logits_NV: Tensor, rows: Sequence[Draw]) -> Tensor:
    """The next token of each row, (N,) int64 on the logits' device: the best one, or one drawn as its Draw says.

    Logits become float32, are divided by the temperature, cut by top-k, then by top-p, as transformers' warpers do.
    """
    tokens = logits_NV.argmax(dim=-1)
    alike: dict[tuple[float, int, float], list[int]] = {}
    for at, draw in enumerate(rows):
        if not draw.sampling.greedy:
            alike.setdefault((draw.sampling.temperature, draw.sampling.top_k, draw.sampling.top_p), []).append(at)
    chunk = max(1, _CHUNK_BYTES // (8 * logits_NV.shape[-1]))
    for (temperature, top_k, top_p), members in alike.items():
        for start in range(0, len(members), chunk):
            part = torch.tensor(members[start : start + chunk], device=logits_NV.device)
            scores = logits_NV[part].float()
            scores = (scores - scores.amax(dim=-1, keepdim=True)) / temperature
            uniforms = [rows[at].uniform for at in members[start : start + chunk]]
            tokens[part] = _draw(_cut_to_p(_cut_to_k(scores, top_k), top_p), uniforms)
    return tokens


def _cut_to_k(scores: Tensor, top_k: int) -> Tensor:
    """Scores with all but the k best at -inf; ties with the last of them stay."""
    if not 0 < top_k < scores.shape[-1]:
        return scores
    least = scores.topk(top_k, dim=-1).values[:, -1:]
    return scores.masked_fill(scores < least, -torch.inf)


def _cut_to_p(scores: Tensor, top_p: float) -> Tensor:
    """Scores with all at -inf but the fewest best tokens that hold ``top_p`` of the probability; ties stay."""
    if top_p >= 1:
        return scores
    total = scores.double().exp().sum(dim=-1, keepdim=True)
    best = scores.topk(min(_NUCLEUS, scores.shape[-1]), dim=-1).values
    if bool((best.double().exp().sum(dim=-1, keepdim=True) < top_p * total).any()):
        best = scores.sort(dim=-1, descending=True).values
    mass = best.double().exp()
    before = mass.cumsum(dim=-1) - mass  # of better tokens; the best one has none and stays
    last = (before < top_p * total).sum(dim=-1, keepdim=True) - 1
    return scores.masked_fill(scores < best.gather(-1, last), -torch.inf)


def _draw(scores: Tensor, uniforms: Sequence[float]) -> Tensor:
    """Inverse of the cumulated probability, in the order of the vocabulary.

    Not in the order of probability: there, rounding that swaps two near-equal tokens would change which one is drawn.
    """
    cumulated = scores.double().exp().cumsum(dim=-1)
    u = torch.tensor(uniforms, dtype=torch.float64, device=scores.device).unsqueeze(-1)
    return torch.searchsorted(cumulated, u * cumulated[:, -1:], right=True).squeeze(-1)
