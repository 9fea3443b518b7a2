"""Random instances of few items and few bytes on slow memories, where rounding to whole bytes shows."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from penstock.sim.memories import Duplex, Memories
from penstock.sim.scenario import Initial, Mode, Passive, Scenario, Start
from penstock.trace.skip_trace import BitTrace, TraceShape

Instance = tuple[Scenario, BitTrace]


@st.composite
def instances(draw: st.DrawFn) -> Instance:
    """A scenario at fixed shares, whose HBM holds its weights and between none and all of its items, and a trace."""
    layers, prefill, decode = draw(st.integers(1, 3)), draw(st.integers(0, 8)), draw(st.integers(1, 5))
    attn, mlp, item = draw(st.integers(0, 9)), draw(st.integers(0, 9)), draw(st.integers(1, 5))
    rates = [draw(st.integers(1, 30)) for _ in range(4)]
    omega = draw(st.fractions(0, 1, max_denominator=8))
    phi = draw(st.none() | st.fractions(0, 1, max_denominator=8))
    places = draw(st.integers(0, layers * (prefill + decode)))
    capacity = int(omega * layers * (attn + mlp)) + places * item + 1
    scenario = Scenario(
        "instance",
        Memories(capacity, *rates, draw(st.sampled_from(Duplex))),
        layers,
        attn,
        mlp,
        item,
        prefill,
        decode,
        Initial(Start.HBM if phi is None else Start.FRACTION, omega, phi),
        draw(st.sampled_from(Mode)),
        draw(st.sampled_from((Passive.OFF, Passive.ALL))),
        compute_s=draw(st.sampled_from((0.0, 0.5))),
        fixed_s=draw(st.sampled_from((0.0, 0.25))),
    )
    shape = TraceShape(prefill, decode, layers)
    sets = [[[draw(st.integers(0, 2 ** (prefill + step) - 1))] for _ in range(layers)] for step in range(decode)]
    return scenario, BitTrace(shape, np.array(sets, np.uint64))


def all_skipped(trace: BitTrace) -> BitTrace:
    """A trace of the same shape that skips whatever exists."""
    shape = trace.shape
    exist: list[Any] = [[[2 ** (shape.prefill_tokens + step) - 1]] * shape.layers for step in range(shape.steps)]
    return BitTrace(shape, np.array(exist, np.uint64))
