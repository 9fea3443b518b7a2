"""The start: which weights and which prefill items HBM holds before the first decode step."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UserError
from penstock.sim.scenario import Scenario, Start
from penstock.sim.weights import LayerBytes, occupied_bytes, weights_in_hbm


@dataclass(frozen=True)
class InitialState:
    """HBM before the first step: bytes of each layer's weights [layers], places for items, and the items in them.

    `items` is bool [layers, prefill tokens]. `warning` says what found no place; it is empty where all did.
    """

    attn_bytes: LayerBytes
    mlp_bytes: LayerBytes
    occupied_bytes: int
    slots: int
    items: NDArray[np.bool_]
    warning: str = ""


def initial_state(scenario: Scenario) -> InitialState:
    """Fill HBM by the scenario's rule.

    Raises UserError where the weights do not fit, or the rule lacks a share or is given one that it sets itself.
    """
    omega, phi = _shares(scenario)
    attn, mlp = weights_in_hbm(scenario, omega)
    occupied = occupied_bytes(scenario, omega, attn, mlp)
    capacity = scenario.memories.hbm_capacity_bytes
    if occupied > capacity:
        raise UserError(_too_heavy(scenario, occupied))
    slots = (capacity - occupied) // scenario.kv_bytes
    chosen = _chosen(scenario.prefill_tokens, phi)
    # Items are dealt token by token: those of the i-th chosen token come after i * layers others.
    place = np.arange(len(chosen)) * scenario.layers + np.arange(scenario.layers)[:, None]
    items = np.zeros((scenario.layers, scenario.prefill_tokens), np.bool_)
    items[:, chosen] = place < slots
    wanted = len(chosen) * scenario.layers
    warning = ""
    if wanted > slots and scenario.initial.start is not Start.HBM:
        warning = (
            f"{wanted - slots} of the {wanted} prefill items that phi = {float(phi):.4g} asks for do not fit HBM "
            f"beside {_size(occupied)} of weights and begin in external memory: "
            f"phi = {_at_most(slots, scenario.prefill_tokens * scenario.layers)} fits"
        )
    for array in (attn, mlp, items):
        array.setflags(write=False)  # policies see them
    return InitialState(attn, mlp, occupied, slots, items, warning)


def _shares(scenario: Scenario) -> tuple[Fraction, Fraction]:
    """The shares of weights and of prefill tokens that go to HBM."""
    initial, best = scenario.initial, scenario.memories.best_share
    for name, share in (("omega", initial.omega), ("phi", initial.phi)):
        if share is not None and not 0 <= share <= 1:
            raise UserError(f"{name} is {float(share):g}: a share from 0 to 1 is needed")
    match initial.start:
        case Start.HBM:
            if initial.phi is not None:
                raise UserError("the start 'hbm' fills HBM with prefill KV and takes no phi: use the start 'fraction'")
            return Fraction(1) if initial.omega is None else initial.omega, Fraction(1)
        case Start.RATIO:
            if initial.omega is not None or initial.phi is not None:
                raise UserError(
                    f"the start 'ratio' sets omega and phi to the best share ({float(best):.4f}): "
                    "leave them out, or use the start 'fraction'"
                )
            return best, best
        case Start.FRACTION:
            if initial.phi is None:
                raise UserError("the start 'fraction' needs phi, the share of prefill KV in HBM: give it")
            return Fraction(1) if initial.omega is None else initial.omega, initial.phi


def _chosen(tokens: int, phi: Fraction) -> NDArray[np.int64]:
    """The tokens t at which floor((t + 1) * phi) steps up, ascending."""
    steps = [(t + 1) * phi.numerator // phi.denominator for t in range(-1, tokens)]
    return np.flatnonzero(np.diff(steps)).astype(np.int64)


def _too_heavy(scenario: Scenario, occupied: int) -> str:
    capacity = scenario.memories.hbm_capacity_bytes
    weights = scenario.weights_bytes if scenario.weight_capacity_bytes is None else scenario.weight_capacity_bytes
    beside_kv = capacity - scenario.prefill_kv_bytes
    also = f", or {_at_most(beside_kv, weights)} to hold the prefill KV too" if beside_kv > 0 else ""
    instead = "use the start 'fraction' with a phi, and " if scenario.initial.start is Start.RATIO else ""
    return (
        f"{_size(occupied)} of weights do not fit {_size(capacity)} of HBM: "
        f"{instead}set omega to at most {_at_most(capacity, weights)}{also}"
    )


def _size(nbytes: int) -> str:
    """In four digits: what does not fit may be short of little."""
    units = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
    return next((f"{nbytes / size:.4g} {unit}" for size, unit in units if nbytes >= size), f"{nbytes} bytes")


def _at_most(part: int, whole: int) -> str:
    """The largest share of four digits that is no more than this one."""
    return f"{part * 10_000 // whole / 10_000:.4f}"
