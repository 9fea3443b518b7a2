"""Placements that depend on the trace alone, decided for a whole window of steps before the kernels go over it."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from penstock.sim.placements import (
    BATCH,
    TIE,
    AlphaLayers,
    BatchRatio,
    LayerImportance,
    LookAheadBatch,
    PreferHbm,
    SplitToken,
)
from penstock.sim.policy import PlacementPolicy
from penstock.sim.prices import round_share
from penstock.sim.scenario import Scenario
from penstock.sim.windows import Window

Wanted = NDArray[np.bool_]


def wanted_in_hbm(placement: PlacementPolicy, scenario: Scenario, window: Window) -> Wanted:
    """Whether each step's new item should go to HBM [steps, layers]; all, where that depends on what HBM holds."""
    layers = scenario.layers
    steps = np.arange(window.first, window.first + window.steps)[:, None]
    best = scenario.memories.best_share
    match placement:
        case PreferHbm() | AlphaLayers():
            return np.ones((window.steps, layers), np.bool_)
        case SplitToken(rotated):
            layer = np.arange(layers) + (scenario.prefill_tokens + steps if rotated else 0)
            return np.broadcast_to(layer % layers < round_share(layers, best), (window.steps, layers))
        case BatchRatio():
            return np.broadcast_to(steps % BATCH < round_share(BATCH, best), (window.steps, layers))
        case LookAheadBatch(length, rule):
            return _by_window(scenario, window, length, rule)
        case LayerImportance(length):
            return _by_rate(scenario, window, length)
        case other:
            raise TypeError(f"no kernel for {other!r}")


def _by_window(scenario: Scenario, window: Window, length: int, rule: Literal["half", "any", "all"]) -> Wanted:
    wanted = np.ones((window.steps, scenario.layers), np.bool_)
    for step in range(window.steps):
        steps = min(length, scenario.decode_tokens - 1 - window.first - step)
        if not steps:
            break
        word, place = divmod(scenario.prefill_tokens + window.first + step, 64)
        ahead = window.lead + step + 1
        skips = (window.bits[ahead : ahead + steps, :, word] >> np.uint64(place) & np.uint64(1)).sum(axis=0)
        wanted[step] = skips < {"half": (steps + 1) // 2, "any": 1, "all": steps}[rule]
    return wanted


def _by_rate(scenario: Scenario, window: Window, length: int) -> Wanted:
    """By the mean over layers, where those above still have the rate of the step before."""
    first = max(window.first - length, 0)
    tokens = scenario.prefill_tokens + np.arange(first, window.first + window.steps)
    parts = window.skip_counts[first : window.first + window.steps] / np.maximum(tokens, 1)[:, None]

    def rates(step: int) -> NDArray[np.float64]:
        return parts[max(step - length + 1, 0) - first : step + 1 - first].mean(axis=0)  # type: ignore[no-any-return]  # numpy types means as Any

    wanted = np.empty((window.steps, scenario.layers), np.bool_)
    before = rates(window.first - 1) if window.first else None
    for row in range(window.steps):
        now = rates(window.first + row)
        total, layers = np.cumsum(now), np.arange(1, scenario.layers + 1)
        if before is not None:
            total[:-1] += np.cumsum(before[::-1])[-2::-1]
            layers = np.full_like(layers, scenario.layers)
        wanted[row] = now <= total / layers * (1 + TIE)
        before = now
    return wanted
