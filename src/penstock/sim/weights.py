"""How much of every layer's weights lies in HBM."""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from penstock.sim.scenario import Scenario, WeightOrder

LayerBytes = NDArray[np.int64]  # [layers]


def weights_in_hbm(scenario: Scenario, omega: Fraction) -> tuple[LayerBytes, LayerBytes]:
    """The bytes of each layer's attention and MLP weights that HBM holds (docs/policies.md, 'The step')."""
    attn, mlp, layers = scenario.attn_bytes, scenario.mlp_bytes, scenario.layers
    if scenario.initial.weight_order is WeightOrder.UNIFORM:
        return np.full(layers, int(omega * attn), np.int64), np.full(layers, int(omega * mlp), np.int64)
    dealt = int(omega * scenario.weights_bytes) - np.arange(layers, dtype=np.int64) * (attn + mlp)
    return np.clip(dealt, 0, attn), np.clip(dealt - attn, 0, mlp)


def occupied_bytes(scenario: Scenario, omega: Fraction, attn: LayerBytes, mlp: LayerBytes) -> int:
    """What those weights take of HBM's capacity."""
    if scenario.weight_capacity_bytes is None:
        return int(attn.sum() + mlp.sum())
    return int(omega * scenario.weight_capacity_bytes)
