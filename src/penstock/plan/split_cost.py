"""What sweeps cost where the cpu beside a gpu computes the first layers in those that are small enough.

A sweep is then computed by both, one after the other for each micro-batch: with several of these, each processor works
for one while the other works for another, unless pages that stream hold all of them together. Larger sweeps bring these
layers' pages up like any others. All attention is the cpu's in either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from penstock.machine.machine import Machine
from penstock.plan.attending import Attending
from penstock.plan.carrying import Carrying
from penstock.plan.cost import Priced, SweepCost
from penstock.plan.load import Load, Spans
from penstock.plan.policy import Policy, Shares, Tier
from penstock.plan.shape import ModelShape
from penstock.plan.types import Asked
from penstock.plan.visits import Visits

_MOST_TOKENS = 1 << 15  # of a sweep

Loads = tuple[Load, ...]


class SplitCost:
    """Prices sweeps as ``SweepCost`` does."""

    def __init__(self, shape: ModelShape, machine: Machine, policy: Policy, homes: Sequence[Tier]) -> None:
        self._machine, self._policy, self._hidden_bytes = machine, policy, shape.hidden_bytes
        first, rest = shape.parted(policy.cpu_layers)
        self._first_bytes = first.page_bytes
        beneath = [home for i, home in enumerate(homes) if i not in shape.footprint.first_pages(policy.cpu_layers)]
        self._streams = any(home != "gpu" and not page.table for page, home in zip(rest.pages, beneath, strict=True))
        self._whole = SweepCost(shape, machine, policy, homes)
        self._rest = SweepCost(rest, machine, policy, beneath)
        there = replace(policy, cpu_layers=0, attention=None, activations=Shares(cpu=1.0))
        self._first = SweepCost(first, _without_gpu(machine), there, ["cpu"] * len(first.pages))

    def with_kv(self, kv: Shares) -> "SplitCost":
        """The same with KV elsewhere, and with pages where they are."""
        other = object.__new__(SplitCost)
        vars(other).update(vars(self))
        other._whole, other._rest, other._first = (one.with_kv(kv) for one in (self._whole, self._rest, self._first))
        return other

    @property
    def held(self) -> Mapping[Tier, int]:
        """Bytes of pages by the tier that they rest on, tables aside."""
        return self._whole.held

    def price(self, loads: Sequence[Load]) -> Priced:
        """A sweep of these micro-batches, among others like it."""
        return self.prices([tuple(loads)])[0]

    def prices(self, sweeps: Sequence[Loads]) -> list[Priced]:
        """Many sweeps, each among others like it."""
        large = [loads for loads in sweeps if not self._in_place(loads)]
        small = [loads for loads in sweeps if self._in_place(loads)]
        priced = dict(zip(large, self._whole.prices(large), strict=True))
        rest, first = self._rest.prices(small), self._first.prices([_computed(loads) for loads in small])
        for loads, above, beneath in zip(small, rest, first, strict=True):
            priced[loads] = self._joined(loads, above, beneath, self._streams)
        return [priced[loads] for loads in sweeps]

    def closed_form(self, loads: Sequence[Load], streamed: Mapping[Tier, float]) -> Priced:
        """As ``SweepCost.closed_form``; streamed: with the first layers' pages, which rest on the cpu."""
        if not self._in_place(loads):
            return self._whole.closed_form(loads, streamed)
        others = {**streamed, "cpu": max(0.0, streamed.get("cpu", 0.0) - self._first_bytes)}
        others = {tier: nbytes for tier, nbytes in others.items() if nbytes > 0}
        above = self._rest.closed_form(loads, others)
        return self._joined(loads, above, self._first.price(_computed(loads)), bool(others))

    def _in_place(self, loads: Sequence[Load]) -> bool:
        return self._policy.in_place(sum(load.tokens for load in loads))

    def _joined(self, loads: Sequence[Load], above: Priced, beneath: Priced, streams: bool) -> Priced:
        """A sweep of which the cpu computes the first layers. above: the others. beneath: these."""
        nbytes, calls = sum(load.tokens for load in loads) * self._hidden_bytes, sum(load.calls for load in loads)
        lanes = dict(above.lanes)
        for lane, busy in beneath.lanes.items():
            lanes[lane] = lanes.get(lane, 0.0) + busy
        crossing = 0.0
        for name in ("gpu→cpu", "cpu→gpu"):
            seconds = self._machine.links[name].seconds(nbytes, round(calls))
            crossing += seconds
            lanes[name] = lanes.get(name, 0.0) + seconds
        in_turn = above.seconds + beneath.seconds + crossing
        if streams or self._policy.slots == 1 or calls <= 1:
            return Priced(in_turn, lanes)
        both = lanes.get("gpu-compute", 0.0), lanes.get("cpu-compute", 0.0)
        together = max(both) + (min(both) + crossing) / calls
        return Priced(min(in_turn, max(together, *lanes.values())), lanes)


Cost = SweepCost | SplitCost


def cost_of(shape: ModelShape, machine: Machine, policy: Policy, homes: Sequence[Tier]) -> Cost:
    """What prices sweeps of a model under a policy."""
    return (SplitCost if policy.cpu_layers else SweepCost)(shape, machine, policy, homes)


def turning_point(shape: ModelShape, machine: Machine) -> int:
    """The most tokens of a sweep for which the cpu computes decoder layers sooner than their pages come up to the gpu
    and are computed there; at least 1, so that they are computed beside it at all.

    Layers are taken to be as the mean of all, so that it is the same however many there are on the cpu.
    """
    layers, _ = shape.parted(shape.footprint.decoders)
    by_cpu, by_gpu = (Visits(layers, machine.processors[tier]) for tier in ("cpu", "gpu"))
    here = Shares(gpu=1.0)
    policy = Policy(here, here, here, 1, 1, 1)
    carrying = Carrying(layers, machine, policy, Attending(machine, policy))
    pages = [layers.kinds.pages[kind] for kind in layers.kinds.page_of]

    def cpu_first(tokens: int) -> bool:
        load = Load((Spans(tokens, 0, 1),), 0, -(-tokens // shape.footprint.call_tokens))
        on_cpu, on_gpu = (
            sum(visits.seconds([load])[kind] for kind in layers.kinds.page_of) for visits in (by_cpu, by_gpu)
        )
        up = sum(carrying.page(page, "cpu", tokens).get("cpu→gpu", 0.0) for page in pages)
        return on_cpu <= max(up, on_gpu)

    most = 1
    while most < _MOST_TOKENS and cpu_first(2 * most):
        most *= 2
    step = most // 2
    while step and most < _MOST_TOKENS:
        if cpu_first(most + step):
            most += step
        step //= 2
    return most


def with_turning_point(asked: Asked, shape: ModelShape, machine: Machine) -> Asked:
    """What is asked, with the tokens up to which the cpu computes layers, where it may compute any."""
    if asked.cpu_layers == 0 or asked.cpu_tokens is not None or not {"cpu", "gpu"} <= machine.processors.keys():
        return asked
    return replace(asked, cpu_tokens=turning_point(shape, machine))


def _computed(loads: Sequence[Load]) -> Loads:
    """Loads of which no token is drawn."""
    return tuple(replace(load, samples=0) for load in loads)


def _without_gpu(machine: Machine) -> Machine:
    """A machine's cpu as it computes beside the gpu, which begins sweeps and ends them."""
    cpu = replace(machine.processors["cpu"], sweep_s=0.0)
    memory: dict[Tier, int] = {tier: nbytes for tier, nbytes in machine.memory.items() if tier != "gpu"}
    return replace(machine, memory=memory, processors={"cpu": cpu})
