"""Tokens that are sent to experts: which experts they touch, and what one page of experts costs. No torch."""

import math
from dataclasses import dataclass
from functools import cached_property

from penstock.machine.machine import Curve, Processor

_PASSES = 7  # over a token's residual stream for each expert: gathered (2), weighted (2), added to the others (3)


@dataclass(frozen=True)
class Routed:
    """Tokens of a call, each sent to ``chosen`` of ``experts``, as if by lot."""

    tokens: float
    chosen: int
    experts: int

    @cached_property
    def touched(self) -> float:
        """The part of the experts that any token is sent to."""
        missed: float = (1 - self.chosen / self.experts) ** self.tokens
        return 1 - missed

    @cached_property
    def met(self) -> float:
        """Tokens that a touched expert meets on average."""
        return self._sent / self.touched

    def visited(self, experts: int) -> float:
        """The chance that a page of so many experts is wanted at all."""
        missed: float = (1 - experts / self.experts) ** (self.tokens * self.chosen)
        return 1 - missed

    def product_s(self, curve: Curve) -> float:
        """Seconds of the tokens' FLOP with one weight of a touched expert.

        Experts do not get equally many tokens, and a product of some more takes a tile more: so the mean over a
        standard deviation above and below what an expert meets (a Poisson distribution without its zero).
        """
        spread = math.sqrt(max(0.0, self.met * (1 + self._sent - self.met)))
        spread = min(spread, self.met - 1)  # none meets less than one
        sizes = (self.met - spread, self.met + spread)
        return sum(2 * size / curve.at(size) for size in sizes) / len(sizes)

    def besides_s(self, experts: int, hidden_bytes: int, processor: Processor) -> float:
        """What a page of so many experts costs besides its products: each touched expert's calls, and its tokens'
        residual streams gathered for it and added up after it."""
        carried = experts * self._sent * _PASSES * hidden_bytes / processor.activation_bytes_per_s
        return experts * self.touched * processor.expert_s + carried

    @property
    def _sent(self) -> float:
        """Tokens that are sent to an expert on average."""
        return self.tokens * self.chosen / self.experts
