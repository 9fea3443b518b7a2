"""The migrations of docs/policies.md on sets: a method for each, which yields moves in their order."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from tests.sim.oracle_case import Item, half_up
from tests.sim.oracle_state import State

Move = tuple[list[Item], list[Item]]  # outs and ins that are made together or not at all


class Migrations:
    def __init__(self, state: State, options: dict[str, Any]) -> None:
        self.state, self.case, self.options = state, state.case, options

    def none(self, n: int, layer: int) -> Iterator[Move]:
        return iter(())

    lru = none

    def prior(self, n: int, layer: int) -> Iterator[Move]:
        if layer == 0 and self.state.above_threshold():
            tokens = sorted({t for t, _ in self.state.hbm})[: self.options.get("count", 16)]
            for item in [item for t in tokens for item in self.state.of_token(t)]:
                yield [item], []

    def skipped_tokens(self, n: int, layer: int) -> Iterator[Move]:
        if self.state.above_threshold():
            every = self.options.get("layers", "own") == "all"
            skipped = self.case.skips(n, layer)
            for item in sorted(self.state.hbm):
                if item[0] in skipped and (every or item[1] == layer):
                    yield [item], []

    def past_window(self, n: int, layer: int) -> Iterator[Move]:
        window = self.case.back(n, self.options.get("window", 16))
        needed = 1 if self.options.get("rule", "any") == "any" else len(window)
        for item in self.state.of_layer(layer):
            if window and sum(item[0] in self.case.skips(m, layer) for m in window) >= needed:
                yield [item], []

    def look_ahead(self, n: int, layer: int) -> Iterator[Move]:
        return self._look_ahead(n, layer, 1, whole=True)

    def look_ahead_batch(self, n: int, layer: int) -> Iterator[Move]:
        return self._look_ahead(n, layer, self.options.get("window", 16), whole=True)

    def look_ahead_layer(self, n: int, layer: int) -> Iterator[Move]:
        return self._look_ahead(n, layer, 1, whole=False)

    def look_ahead_batch_layer(self, n: int, layer: int) -> Iterator[Move]:
        return self._look_ahead(n, layer, self.options.get("window", 16), whole=False)

    def _look_ahead(self, n: int, layer: int, length: int, whole: bool) -> Iterator[Move]:
        window = self.case.ahead(n, length)
        if not window:
            return
        read = [self.case.reads(m, layer) for m in window]
        count = {t: sum(t in tokens for tokens in read) for t in range(n + 1)}

        def resident(t: int) -> list[Item]:
            return [item for item in self.state.of_token(t) if whole or item[1] == layer]

        def absent(t: int) -> list[Item]:
            return [item for item in self.state.outside(t, n, layer) if whole or item[1] == layer]

        to_leave = [t for t in range(n + 1) if count[t] == 0]
        room = self.options.get("room", False)
        if not room:
            for item in [item for t in to_leave for item in resident(t)]:
                yield [item], []
        wanted = sorted((t for t in count if count[t]), key=lambda t: (-count[t], -t))
        for item in [item for t in wanted for item in absent(t)]:
            outs: list[Item] = []
            if self.state.free() <= 0:
                outs = next((resident(t) for t in to_leave if resident(t)), []) if room else []
                if not outs:
                    return
            yield outs, [item]

    def alpha(self, n: int, layer: int) -> Iterator[Move]:
        state, case, k, w_a = self.state, self.case, self.case.kv_bytes, self.state.w_a[layer]
        window = case.ahead(n, self.options.get("window", 1))
        if not window:
            return
        a = self.options.get("target", case.best_share)
        read = {m: case.reads(m, layer) for m in window}
        size = {m: case.attn_bytes + k * len(read[m]) for m in window}
        wanted = {m: min(max(half_up((a * size[m] - w_a) / k), 0), len(read[m])) for m in window}
        held = {m: sum((t, layer) in state.hbm for t in read[m]) for m in window}
        h_star = half_up(Fraction(sum(wanted.values()), len(window)))
        h = half_up(Fraction(sum(held.values()), len(window)))
        if h == h_star:
            return
        predicted = Fraction(sum(w_a + k * held[m] for m in window), sum(size.values()))
        if abs(predicted - a) <= Fraction(1, 200):
            return
        count = {t: sum(t in read[m] for m in window) for t in range(n)}
        if h < h_star:
            candidates = [t for t in range(n) if count[t] and (t, layer) not in state.hbm]
            candidates.sort(key=lambda t: (-count[t], (t, layer) not in state.read_e, -t))
            for t in candidates[: h_star - h]:
                outs: list[Item] = []
                if state.free() <= 0:
                    outs = [item for item in state.of_layer(layer) if count.get(item[0]) == 0][:1]
                    if not outs:
                        return
                yield outs, [(t, layer)]
        elif not case.inclusive:
            residents = [t for t in range(n) if count[t] and (t, layer) in state.hbm]
            for t in sorted(residents, key=lambda t: (count[t], t))[: h - h_star]:
                yield [(t, layer)], []
