"""A stand-in for the planner: it remembers the question and answers with a made-up plan."""

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from penstock.machine.machine import Curve, Link, Machine, Processor
from penstock.plan.plan import Alternative, Gain, Plan, Prediction, SteadySweep, Use
from penstock.plan.policy import Policy, Shares
from penstock.plan.question import Question
from penstock.plan.shape import AttentionShape, ModelShape, PageShape
from penstock.plan.types import Footprint, Placement

GIB = 2**30
LANES = {"disk→cpu": 11.6, "cpu→gpu": 4.0, "gpu-compute": 2.1}

POLICY = Policy(
    weights=Shares(0.0900, 0.3209, 0.5891),
    kv=Shares(gpu=1.0),
    activations=Shares(gpu=1.0),
    rows=196,
    sweep_tokens=1024,
    batch_tokens=512,
    slots=3,
)
PREDICTION = Prediction(
    seconds=21_720.0,
    prefill_s=1_500.0,
    decode_s=20_220.0,
    tokens_in=960_000,
    prefill_tokens=960_000,
    decode_tokens=298_000,
    tokens_out=300_000,
    sweeps=1_621,
    rows_mean=185.0,
    lanes={lane: seconds * 1_621 for lane, seconds in LANES.items()},
    steady=SteadySweep(13.4, 823, 196, LANES),
    hidden_tokens=11_400.0,
)
MEMORY = {
    "gpu": Use(12 * GIB, 0, int(5.1 * GIB), int(1.9 * GIB), GIB // 4, int(2.6 * GIB)),
    "cpu": Use(24 * GIB, GIB // 2, int(18.2 * GIB), 0, 0, int(1.1 * GIB)),
    "disk": Use(645 * GIB, 0, int(33.4 * GIB), 0, 0, 0),
}
CURVE = [(1, 0.07), (2, 0.15), (4, 0.3), (8, 0.6), (16, 1.2), (32, 2.4), (64, 4.7), (128, 9.3), (196, 13.8),
         (512, 32.0), (1024, 58.0), (2048, 92.0), (4096, 126.0), (8192, 138.0)]  # fmt: skip

PLAN = Plan(
    model="Qwen3-30B-A3B",
    machine="RTX 4070 12 GiB · 24 GiB cpu · nvme 3.1 GB/s read",
    job="2,000 prompts of 480 tokens, 150 to generate",
    policy=POLICY,
    memory=MEMORY,  # type: ignore[arg-type]  # the keys are tiers
    predicted=PREDICTION,
    placement=Placement(POLICY, ("gpu", "cpu", "disk", "disk"), {"gpu": int(1.9 * GIB)}, 0, {"gpu": GIB}),
    duals={"cpu": 0.4 / GIB, "disk→cpu": 4.1e-9, "gpu→cpu": 0.0},
    gains=[
        Gain("one more GiB of cpu", 14.2, 196),
        Gain("disk→cpu twice as fast", 23.6, 196),
        Gain("one more GiB of gpu", 16.9, 316),
        Gain("cpu→gpu twice as fast", 13.81, 196),
    ],
    runners_up=[
        Alternative("static split", 2.1, "cpu computes 40 of 48 layers"),
        Alternative("one layer at a time", 0.3, "nothing runs beside the transfers"),
        Alternative("all on the cpu", None, "57 GiB of weights in 24 GiB"),
    ],
    notes=["the profile of this host is 2 days old: penstock profile measures it again"],
    curve=CURVE,
)

_LAYER = PageShape(nbytes=2**20, weights=2**19, layer=0)
SHAPE = ModelShape(
    "tiny",
    "bfloat16",
    (PageShape(2**18, 0, None, table=True), _LAYER, PageShape(2**20, 2**19, 1), PageShape(2**18, 2**17, None)),
    [AttentionShape(1024, 4096, None, 1), AttentionShape(1024, 4096, None, 2)],
    512,
    4096,
    1000,
    Footprint((2**18, 2**20, 2**20, 2**18), frozenset({0}), 4096, 100, 4000, 2**15, 16),
)
_GPU = Processor({"bfloat16": Curve.flat(1e12)}, Curve.flat(1e12), 1e11, 1e11, 1e11)
_CPU = Processor({"bfloat16": Curve.flat(1e10)}, Curve.flat(1e10), 1e10, 1e10, 1e10)
MACHINE = Machine(
    "toy",
    {"gpu": 3 * 2**20, "cpu": 2**30, "disk": 2**40},
    {"cpu→gpu": Link(12e9), "gpu→cpu": Link(12e9), "disk→cpu": Link(2e9), "cpu→disk": Link(1e9)},
    {"gpu": _GPU, "cpu": _CPU},
)


@dataclass
class Planner:
    """What a test sets before and reads after a command."""

    plan: Plan = PLAN
    model: str | None = None
    question: Question | None = None
    events: list[dict[str, Any]] = field(default_factory=list)


def install(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace ``penstock.planner`` by a fake."""

    def make_plan(model: str, question: Question, on_event: Any) -> Plan:
        planner.model, planner.question = model, question
        for event in planner.events:
            on_event(event)
        return planner.plan

    module = ModuleType("penstock.planner")
    module.make_plan = make_plan  # type: ignore[attr-defined]  # a module made on the spot
    module.shape_of = lambda model, question: SHAPE  # type: ignore[attr-defined]
    module.shape_and_machine = lambda model, question, on_event: (SHAPE, MACHINE)  # type: ignore[attr-defined]
    module.planned_source = lambda model, trust: SimpleNamespace(  # type: ignore[attr-defined]
        name=model, kind="random" if model.endswith(".json") else "safetensors"
    )
    monkeypatch.setitem(sys.modules, "penstock.planner", module)
