"""Random small instances, each as the oracle's case and as the scenario and trace of the same numbers."""

import random
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from tests.sim.oracle_case import Case

from penstock.sim.memories import Duplex, Memories
from penstock.sim.scenario import Initial, Mode, Passive, Scenario, Start, WeightOrder
from penstock.sim.scenario_file import parse
from penstock.sim.shipped import document_of
from penstock.trace.skip_trace import BitTrace, TraceShape

# What bandwidths have in common in most instances; in others 64-bit integers do not hold their products with bytes.
COMMON = 10**9

SkipSets = list[list[frozenset[int]]]


@dataclass(frozen=True)
class Limits:
    """The most layers, prefill tokens and decode steps of an instance."""

    layers: int = 4
    prefill: int = 40
    decode: int = 40


def random_case(rng: random.Random, limits: Limits | None = None, mode: str | None = None) -> Case:
    """Anything the page allows, with a capacity between 'the weights, barely' and 'everything'."""
    limits = limits or Limits()
    layers = rng.randint(1, limits.layers)
    prefill, decode = rng.randint(0, limits.prefill), rng.randint(1, limits.decode)
    item = rng.choice([1, 3, 64, 1000, 4096, 524288])
    attn, mlp = (rng.choice([0, 1, 5, 20]) * item * rng.randint(0, 4) // 2 + rng.randint(0, 9) for _ in range(2))
    grain = rng.choice([COMMON] * 5 + [1])
    b_r = _near(rng, 300, 1000, grain)
    b_h = rng.choice([b_r, _near(rng, 1000, 9000, grain)])
    b_w = rng.choice([b_r, _near(rng, 100, 1000, grain)])
    b_int = rng.choice([2 * b_r, _near(rng, 200, 2000, grain)])
    start = rng.choice(["hbm", "hbm", "ratio", "fraction"])
    omega = {"hbm": rng.choice([None, _share(rng)]), "ratio": None, "fraction": _share(rng)}[start]
    held = Fraction(b_h, b_h + min(b_r, b_int)) if start == "ratio" else Fraction(1) if omega is None else omega
    weights = int(held * layers * (attn + mlp))
    everything = layers * (prefill + decode) * item
    part = rng.choice([0.0, 1.1, *(rng.random() for _ in range(6))])
    return Case(
        skipped=_random_sets(rng, layers, prefill, decode),
        layers=layers,
        prefill=prefill,
        attn_bytes=attn,
        mlp_bytes=mlp,
        kv_bytes=item,
        capacity=weights + int(part * everything) + rng.randint(0, item) or 1,
        b_h=b_h,
        b_r=b_r,
        b_w=b_w,
        b_int=b_int,
        duplex=rng.choice(["full", "full", "half", "serial"]),
        mode=mode or rng.choice(["exclusive", "inclusive"]),
        passive=rng.choice(["off", "all", "alpha"]),
        start=start,
        omega=omega,
        phi=_share(rng) if start == "fraction" else None,
        weight_order=rng.choice(["uniform", "uniform", "by-layer"]),
        compute_s=rng.choice([0.0, 0.0, rng.randint(1, 40) * item / b_h]),
        fixed_s=rng.choice([0.0, 0.0, item / b_h]),
    )


def scenario_of(case: Case) -> Scenario:
    memories = Memories(case.capacity, case.b_h, case.b_r, case.b_w, case.b_int, Duplex(case.duplex))
    return Scenario(
        name="case",
        memories=memories,
        layers=case.layers,
        attn_bytes=case.attn_bytes,
        mlp_bytes=case.mlp_bytes,
        kv_bytes=case.kv_bytes,
        prefill_tokens=case.prefill,
        decode_tokens=len(case.skipped),
        initial=Initial(Start(case.start), case.omega, case.phi, WeightOrder(case.weight_order)),
        mode=Mode(case.mode),
        passive=Passive(case.passive),
        compute_s=case.compute_s,
        fixed_s=case.fixed_s,
    )


def trace_of(case: Case) -> BitTrace:
    shape = TraceShape(case.prefill, len(case.skipped), case.layers)
    bits = np.zeros((shape.steps, shape.layers, shape.words), np.uint64)
    for step, of_layers in enumerate(case.skipped):
        for layer, tokens in enumerate(of_layers):
            for t in tokens:
                bits[step, layer, t // 64] |= np.uint64(1 << t % 64)
    return BitTrace(shape, bits)


def shipped(name: str, decode_tokens: int) -> Scenario:
    """A scenario that comes with Penstock, at this length."""
    return replace(parse(document_of(name), name).scenario, decode_tokens=decode_tokens)


def unskipped(scenario: Scenario) -> BitTrace:
    """The trace of its shape that skips nothing."""
    shape = TraceShape(scenario.prefill_tokens, scenario.decode_tokens, scenario.layers)
    return BitTrace(shape, np.zeros((shape.steps, shape.layers, shape.words), np.uint64))


def _near(rng: random.Random, least: int, most: int, grain: int) -> int:
    """A bandwidth of so many GB/s, a multiple of `grain`."""
    return rng.randint(least * 10**9 // grain, most * 10**9 // grain) * grain


def _share(rng: random.Random) -> Fraction:
    return rng.choice([Fraction(0), Fraction(1), Fraction(rng.randint(0, 1000), 1000), Fraction(rng.random())])


def _random_sets(rng: random.Random, layers: int, prefill: int, decode: int) -> SkipSets:
    """Sets drawn anew in each step, or such as change little from step to step."""
    level = rng.choice([0.0, 1.0, rng.random(), rng.random(), rng.random()])
    stay = rng.choice([0.0, 0.8, 0.95])
    skipped: dict[tuple[int, int], bool] = {}
    sets: SkipSets = []
    for n in range(prefill, prefill + decode):
        for item in ((t, layer) for layer in range(layers) for t in range(n)):
            if item not in skipped or rng.random() >= stay:
                skipped[item] = rng.random() < level
        sets.append([frozenset(t for t in range(n) if skipped[t, layer]) for layer in range(layers)])
    return sets
