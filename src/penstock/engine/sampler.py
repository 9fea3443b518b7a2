"""Drawing tokens from logits: what a row draws depends on its logits, seed, request and position alone.

Shapes: N rows, V tokens of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from penstock.sampling import Sampling

_CHUNK_BYTES = 8 * 2**20  # of float32 logits at a time
# Best tokens that top-p looks at before it sorts the whole vocabulary, which takes 20 times as long.
_BEST = (256, 4096)
NOT_FINITE = -1  # in the place of a token: the best logit of the row is NaN or infinite


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
    NOT_FINITE where nothing can be drawn, which is found on the way: only the best logits are looked at.
    """
    if all(draw.sampling.greedy for draw in rows):
        return _best(logits_NV)
    tokens = torch.empty(len(rows), dtype=torch.int64, device=logits_NV.device)
    alike: dict[tuple[float, int, float] | None, list[int]] = {}
    for at, draw in enumerate(rows):
        how = draw.sampling
        alike.setdefault(None if how.greedy else (how.temperature, how.top_k, how.top_p), []).append(at)
    chunk = max(1, _CHUNK_BYTES // (4 * logits_NV.shape[-1]))
    for kind, members in alike.items():
        for start in range(0, len(members), chunk):
            part = members[start : start + chunk]
            index = torch.tensor(part, device=logits_NV.device)
            logits = logits_NV[index].float()
            if kind is None:
                tokens[index] = _best(logits)
            else:
                temperature, top_k, top_p = kind
                top = logits.amax(dim=-1, keepdim=True)
                logits = logits.sub_(top).div_(temperature)
                u = torch.tensor([rows[at].uniform for at in part], dtype=torch.float64, device=index.device)
                tokens[index] = _checked(_draw(logits, top_k, top_p, u.unsqueeze(-1)), top.squeeze(-1))
    return tokens


def _best(logits_NV: Tensor) -> Tensor:
    """The best token of each row; NaN counts as the best of all."""
    tokens = logits_NV.argmax(dim=-1)
    return _checked(tokens, logits_NV.gather(-1, tokens.unsqueeze(-1)).squeeze(-1))


def _checked(tokens_N: Tensor, top_N: Tensor) -> Tensor:
    """The tokens of the rows whose best logit is finite; nothing waits for the device here."""
    return torch.where(top_N.isfinite(), tokens_N, NOT_FINITE)


def _draw(scores: Tensor, top_k: int, top_p: float, u_N1: Tensor) -> Tensor:
    """Inverse of the cumulated probability of the kept tokens, in the order of the vocabulary.

    Not in the order of probability: there, rounding that swaps two near-equal tokens would change which one is drawn.
    """
    if not top_k and top_p >= 1:
        return _invert(scores.exp(), u_N1).squeeze(-1)
    if top_k:
        best, tokens = scores.topk(min(top_k, scores.shape[-1]), dim=-1)
        mass = best.double().exp()
        nucleus = top_p * mass.sum(dim=-1, keepdim=True)
    else:
        nucleus = top_p * scores.exp().sum(dim=-1, keepdim=True, dtype=torch.float64)
        mass, tokens = _best_that_hold(scores, nucleus)
    if top_p < 1:
        before = mass.cumsum(dim=-1) - mass  # of better tokens; the best one has none and stays
        mass = mass.masked_fill(before >= nucleus, 0)
    tokens, order = tokens.sort(dim=-1)
    return tokens.gather(-1, _invert(mass.gather(-1, order), u_N1)).squeeze(-1)


def _best_that_hold(scores: Tensor, nucleus_N1: Tensor) -> tuple[Tensor, Tensor]:
    """Masses (float64) and ids of the best tokens, best first, as many as surely hold the nucleus."""
    for count in _BEST:
        if count < scores.shape[-1]:
            best, tokens = scores.topk(count, dim=-1)
            mass = best.double().exp()
            if bool((mass.sum(dim=-1, keepdim=True) >= nucleus_N1).all()):
                return mass, tokens
    best, tokens = scores.sort(dim=-1, descending=True)
    return best.double().exp(), tokens


def _invert(mass: Tensor, u_N1: Tensor) -> Tensor:
    """The first index at which the cumulated mass exceeds its fraction u; (N, 1)."""
    cumulated = mass.cumsum(dim=-1, dtype=torch.float64)
    found = torch.searchsorted(cumulated, u_N1 * cumulated[:, -1:], right=True)
    return found.clamp_(max=cumulated.shape[-1] - 1)  # of masses that are NaN it is beyond the last
