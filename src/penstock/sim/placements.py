"""Where the new item goes: the rules of docs/policies.md in plain numpy."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from penstock.sim.prices import round_share
from penstock.sim.view import View

BATCH = 16
TIE = 1e-9  # a mean rate exceeds another by more than this part of it; less is rounding


@dataclass(frozen=True)
class PreferHbm:
    """HBM while there is room."""

    def in_hbm(self, view: View) -> bool:
        """Always."""
        return True


@dataclass(frozen=True)
class SplitToken:
    """The first layers in the best share go to HBM."""

    rotated: bool = False

    def in_hbm(self, view: View) -> bool:
        """By the layer, which `rotated` shifts by one each step."""
        layers = view.scenario.layers
        layer = (view.layer + view.step) % layers if self.rotated else view.layer
        return layer < round_share(layers, view.best_share)


@dataclass(frozen=True)
class BatchRatio:
    """Of 16 tokens in a row, the first in the best share go to HBM."""

    def in_hbm(self, view: View) -> bool:
        """By the token's place among 16."""
        return (view.step - view.scenario.prefill_tokens) % BATCH < round_share(BATCH, view.best_share)


@dataclass(frozen=True)
class LookAheadBatch:
    """External if the steps ahead skip the token: half of them, any or all."""

    window: int = 16
    rule: Literal["half", "any", "all"] = "half"

    @property
    def ahead(self) -> int:
        """Steps it looks ahead."""
        return self.window

    def in_hbm(self, view: View) -> bool:
        """By how many steps of the window skip token n at this layer."""
        steps = view.ahead(self.window)
        skips = sum(bool(view.skipped(m)[view.step]) for m in steps)
        return not len(steps) or skips < {"half": (len(steps) + 1) // 2, "any": 1, "all": len(steps)}[self.rule]


@dataclass(frozen=True)
class LayerImportance:
    """External if the layer skips more than layers do on average, over a window back."""

    window: int = 64

    def in_hbm(self, view: View) -> bool:
        """By the layer's mean rate; layers above still have that of the step before."""
        first = max(view.scenario.prefill_tokens, view.step - self.window)
        before = self._rates(view, range(first, view.step))[view.layer + 1 :]
        rates = np.append(self._rates(view, view.back(self.window))[: view.layer + 1], before)
        return bool(rates[view.layer] <= rates.mean() * (1 + TIE))

    def _rates(self, view: View, steps: range) -> NDArray[np.float64]:
        """Each layer's mean part of tokens skipped, none without steps. Step 0 has no tokens: it skips no part."""
        if not len(steps):
            return np.empty(0)
        rates: NDArray[np.float64] = (view.skip_counts(steps) / np.maximum(steps, 1)[:, None]).mean(axis=0)
        return rates


@dataclass(frozen=True)
class AlphaLayers:
    """External if the layer's items in HBM already exceed the best share of its tokens."""

    def in_hbm(self, view: View) -> bool:
        """By the layer's items in HBM."""
        share = view.best_share
        return int(view.hbm[view.layer].sum()) * share.denominator <= share.numerator * view.step
