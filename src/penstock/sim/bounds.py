"""What no policy can beat; docs/policies.md, Bounds."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.sim.initial import initial_state
from penstock.sim.scenario import Scenario


@dataclass(frozen=True)
class Bounds:
    """Lower bounds of a scenario's time in seconds, each at least the one before.

    `lb0_s`: any capacity. `lb1_s`: this capacity. `lb1_at_weights_s`: this capacity and this split of the weights.
    """

    lb0_s: float
    lb1_s: float
    lb1_at_weights_s: float


def bounds(scenario: Scenario, reads: NDArray[np.int64]) -> Bounds:
    """LB0, LB1 and LB1 at omega of a scenario; computing and fixed times are left out of all three.

    reads: |R(n, l)| [steps, layers], as `trace_facts` counts them.
    """
    memories, start = scenario.memories, initial_state(scenario)
    hbm_rate, ext_rate = memories.hbm_bytes_per_s, memories.ext_bytes_per_s
    kv = scenario.kv_bytes * reads
    attn_held, mlp_held = start.attn_bytes, start.mlp_bytes

    room = memories.hbm_capacity_bytes - start.occupied_bytes  # what weights leave to KV
    token_kv = kv.sum(axis=1)
    read = scenario.weights_bytes + token_kv
    balanced_s = read / (hbm_rate + ext_rate)
    beyond_hbm = read - room - int(attn_held.sum() + mlp_held.sum())
    lb1_s = np.maximum(balanced_s, beyond_hbm / ext_rate)

    attn, mlp = scenario.attn_bytes, scenario.mlp_bytes
    attention_s = np.maximum(
        (attn + kv) / (hbm_rate + ext_rate), np.maximum(attn_held / hbm_rate, (attn - attn_held) / ext_rate)
    )
    mlp_s = np.maximum(mlp / (hbm_rate + ext_rate), np.maximum(mlp_held / hbm_rate, (mlp - mlp_held) / ext_rate))
    from_ext = (attn - attn_held).sum() + np.maximum(0, token_kv - room)
    at_weights_s = mlp_s.sum() + np.maximum(attention_s.sum(axis=1), from_ext / ext_rate)
    return Bounds(float(balanced_s.sum()), float(lb1_s.sum()), float(at_weights_s.sum()))
