"""Which cached tokens a decode step has to read, by its attention weights.

Weights are (H, G, L): KV heads, query heads that share one, and the L keys that the step's query sees in a row, its
own key last. They sum to one over L, or to less where learned sinks take a part.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import torch

from penstock.errors import UserError

SINKS, RECENT = 4, 16
FORMS = "top-k:64, top-k:25%, top-p:0.95 or threshold:0.001"


class Rule(Protocol):
    """A choice of tokens by weight; its text is what ``parse_rule`` reads."""

    def chosen(self, weights_HGL: torch.Tensor) -> torch.Tensor:
        """Which of the L - 1 cached tokens at least one KV head needs, (L - 1,) bool."""
        ...


@dataclass(frozen=True, slots=True)
class TopK:
    """Every KV head's heaviest tokens, as its heaviest query head weighs them. share: of those seen, rounded up."""

    tokens: int | None = None
    share: Fraction | None = None

    def __str__(self) -> str:
        return f"top-k:{self.tokens}" if self.share is None else f"top-k:{float(self.share * 100):g}%"

    def chosen(self, weights_HGL: torch.Tensor) -> torch.Tensor:
        """See Rule; of equal weights the older token is chosen."""
        heaviest_HC = weights_HGL[..., :-1].amax(1)
        seen = heaviest_HC.shape[1]
        count = math.ceil(self.share * seen) if self.share is not None else min(self.tokens or 0, seen)
        best = heaviest_HC.sort(dim=1, descending=True, stable=True).indices[:, :count]
        return torch.zeros_like(heaviest_HC, dtype=torch.bool).scatter_(1, best, True).any(0)


@dataclass(frozen=True, slots=True)
class TopP:
    """Every query head's smallest set of tokens with this share of the weight that it gives to tokens.

    The step's own token counts into the share, but it is not cached and so never chosen.
    """

    share: float

    def __str__(self) -> str:
        return f"top-p:{self.share:g}"

    def chosen(self, weights_HGL: torch.Tensor) -> torch.Tensor:
        """See Rule; of equal weights the older token is chosen."""
        ordered, index = weights_HGL.double().sort(dim=-1, descending=True, stable=True)
        total = ordered.cumsum(-1)
        needed = total - ordered < self.share * total[..., -1:]
        chosen = torch.zeros_like(needed).scatter_(-1, index, needed)
        return chosen[..., :-1].flatten(0, 1).any(0)


@dataclass(frozen=True, slots=True)
class Threshold:
    """The tokens to which any query head gives at least this weight."""

    weight: float

    def __str__(self) -> str:
        return f"threshold:{self.weight:g}"

    def chosen(self, weights_HGL: torch.Tensor) -> torch.Tensor:
        """See Rule."""
        return (weights_HGL[..., :-1] >= self.weight).flatten(0, 1).any(0)


@dataclass(frozen=True, slots=True)
class Selection:
    """A rule, and what is read whatever it says: the first tokens of the row and the latest before the step's own."""

    rule: Rule
    sinks: int = SINKS
    recent: int = RECENT

    def read(self, weights_HGL: torch.Tensor, position: int) -> torch.Tensor:
        """The tokens that the query at a position reads of those before it, (position,) bool.

        What it does not see (a window has left it behind) is not read, sinks included.
        """
        first = position + 1 - weights_HGL.shape[2]
        kept = self.rule.chosen(weights_HGL)
        kept[: max(0, self.sinks - first)] = True
        kept[max(0, len(kept) - self.recent) :] = True
        return torch.nn.functional.pad(kept, (first, 0))


def parse_rule(text: str) -> Rule:
    """The rule that a text such as ``top-k:25%`` names; UserError for another one."""
    kind, _, value = text.partition(":")
    share = value.endswith("%")
    number = _number(value.removesuffix("%"))
    if kind == "top-k" and share and 0 <= number <= 100:
        return TopK(share=Fraction(value.removesuffix("%")) / 100)
    if kind == "top-k" and not share and number >= 0 and number.is_integer():
        return TopK(tokens=int(number))
    if kind == "top-p" and not share and 0 <= number <= 1:
        return TopP(number)
    if kind == "threshold" and not share and 0 <= number <= 1:
        return Threshold(number)
    raise UserError(f"--rule {text} is none of {FORMS} (shares are at most 100% or 1)")


def _number(text: str) -> float:
    """What a text says in digits, or no number at all, which is in no range."""
    try:
        found = float(text)
    except ValueError:
        return math.nan
    return found if math.isfinite(found) else math.nan
