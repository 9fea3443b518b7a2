"""A bare instance of the placement program: sizes, memory and links alone, solved, with given answers priced."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from penstock.errors import UserError
from penstock.plan.linear import Infeasible, Item, Lane, Optimum, Place, Price, Program, SharesOf, price, solve
from penstock.plan.policy import TIERS, Tier
from penstock.units import format_bytes

ItemName = Literal["weights", "kv", "activations"]
ReadLink = Literal["cpu→gpu", "disk→cpu"]
ITEMS: tuple[ItemName, ...] = ("weights", "kv", "activations")
COMPUTE = "compute"


@dataclass(frozen=True, slots=True)
class Instance:
    """A program as given. sizes, compute_s: of one layer. memory: None is unlimited, and an absent tier is not there.

    disk_through_cpu: whether what rests on disk crosses cpu→gpu too. answers: placements to price beside the optimum.
    notes: what a reader of the file should know.
    """

    source: str
    name: str
    layers: int
    sizes: Mapping[ItemName, int]
    memory: Mapping[Tier, int | None]
    links: Mapping[ReadLink, float]
    compute_s: float
    disk_through_cpu: bool
    answers: Mapping[str, SharesOf]
    notes: tuple[str, ...]

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The tiers that are there, fastest first."""
        return tuple(tier for tier in TIERS if tier in self.memory)

    def program(self) -> Program:
        """The linear program: all layers' bytes in memory, and lanes that are busy with one layer."""
        lanes: dict[str, Lane] = {link: Lane(0.0, self._carried(link)) for link in self.links}
        return Program(
            items={name: Item(self.layers * size, self.tiers) for name, size in self.sizes.items()},
            capacity={tier: nbytes for tier, nbytes in self.memory.items() if nbytes is not None},
            lanes=lanes | {COMPUTE: Lane(self.compute_s, {})},
        )

    def _carried(self, link: ReadLink) -> dict[Place, float]:
        beyond: tuple[Tier, ...] = ("disk",) if link == "disk→cpu" else ("cpu",)
        if link == "cpu→gpu" and self.disk_through_cpu:
            beyond = ("cpu", "disk")
        bytes_per_s = self.links[link]
        return {
            (name, tier): size / bytes_per_s
            for name, size in self.sizes.items()
            for tier in beyond
            if tier in self.memory
        }


@dataclass(frozen=True, slots=True)
class Solved:
    """An instance's optimum, seconds of one layer, and the price of each given answer beside it."""

    instance: Instance
    optimum: Optimum
    answers: Mapping[str, Price]

    def ratio(self, answer: str) -> float | None:
        """How many times as long a given answer takes; None where the optimum takes no time and the answer does."""
        seconds, best = self.answers[answer].seconds, self.optimum.seconds
        if best > 0:
            return seconds / best
        return None if seconds > 0 else 1.0


def solve_instance(instance: Instance) -> Solved:
    """Solve an instance and price its answers. Raises UserError where nothing fits, with what is missing."""
    program = instance.program()
    try:
        optimum = solve(program)
    except Infeasible as error:
        missing = " and ".join(f"memory.{tier} is {nbytes:,} bytes too small" for tier, nbytes in error.short.items())
        needed = sum(item.nbytes for item in program.items.values())
        raise UserError(
            f"{instance.source}: no placement fits {format_bytes(needed)} ({needed:,} bytes) of"
            f" {instance.layers:,} layers: {missing}; give it more, or smaller sizes"
        ) from None
    return Solved(instance, optimum, {name: price(program, shares) for name, shares in instance.answers.items()})
