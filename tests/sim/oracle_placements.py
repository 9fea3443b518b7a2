"""The placements of docs/policies.md on sets: a method for each, True is HBM."""

from fractions import Fraction
from typing import Any

from tests.sim.oracle_case import half_up
from tests.sim.oracle_state import State


class Placements:
    def __init__(self, state: State, options: dict[str, Any]) -> None:
        self.state, self.case, self.options = state, state.case, options
        self.rates: dict[int, Fraction] = {}

    def prefer_hbm(self, n: int, layer: int) -> bool:
        return True

    def split_token(self, n: int, layer: int) -> bool:
        layers = self.case.layers
        place = (layer + n) % layers if self.options.get("rotated", False) else layer
        return place < half_up(layers * self.case.best_share)

    def batch_ratio(self, n: int, layer: int) -> bool:
        return (n - self.case.prefill) % 16 < half_up(16 * self.case.best_share)

    def look_ahead_batch(self, n: int, layer: int) -> bool:
        window = self.case.ahead(n, self.options.get("window", 16))
        if not window:
            return True
        count = sum(n in self.case.skips(m, layer) for m in window)
        rule = self.options.get("rule", "half")
        return not {"half": 2 * count >= len(window), "any": count > 0, "all": count == len(window)}[rule]

    def layer_importance(self, n: int, layer: int) -> bool:
        window = self.case.back(n, self.options.get("window", 64))
        rates = [Fraction(len(self.case.skips(m, layer)), m) if m else Fraction(0) for m in window]
        self.rates[layer] = sum(rates, Fraction(0)) / len(rates)
        mean = sum(self.rates.values(), Fraction(0)) / len(self.rates)
        return not self.rates[layer] > mean * (1 + Fraction(1, 10**9))

    def alpha_layers(self, n: int, layer: int) -> bool:
        return not len(self.state.of_layer(layer)) > self.case.best_share * n
