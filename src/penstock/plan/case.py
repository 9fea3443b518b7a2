"""What a plan is searched for: a model's shape, a machine, a job, budgets and what is fixed. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from penstock.machine.machine import Machine
from penstock.plan.policy import Policy, Tier
from penstock.plan.shape import ModelShape
from penstock.plan.types import Asked, Job, Ledger, Length
from penstock.schedule.prefix import chain
from penstock.schedule.types import GroupSpec, Request


@dataclass(frozen=True)
class Case:
    """A search's input.

    lengths: the job's rows. groups, chunking: as the scheduler takes them. bits of what is stored: as a Policy has
    them. no_disk: nothing may rest on disk. token_s: the most that a row may wait for each token, where that is
    bounded. latency: the shortest sweep is wanted, not the most tokens per second.
    """

    shape: ModelShape
    machine: Machine
    ledger: Ledger
    lengths: Sequence[Length]
    asked: Asked = field(default_factory=Asked)
    groups: Sequence[GroupSpec] = ()
    chunking: bool = True
    weight_bits: int | None = None
    lm_head_bits: int | None = None
    kv_bits: int | None = None
    no_disk: bool = False
    latency: bool = False
    token_s: float | None = None

    @property
    def compute(self) -> Tier:
        """The tier that computes."""
        return self.machine.compute

    @property
    def kv_tier(self) -> Tier:
        """The tier that new keys are written on."""
        return self.asked.kv_tier(self.compute)

    @cached_property
    def job(self) -> Job:
        """The job as placements count it, every row as long as it may become."""
        totals = [one.prompt + (one.most or one.generated) for one in self.lengths]
        longest = max(one.prompt for one in self.lengths)
        return Job(len(totals), -(-sum(totals) // len(totals)), max(totals), longest)

    @cached_property
    def prompt(self) -> float:
        """Mean tokens of a prompt."""
        return sum(one.prompt for one in self.lengths) / len(self.lengths)

    @cached_property
    def shared(self) -> Sequence[int]:
        """Leading tokens of every prompt that an earlier row has, too."""
        if all(one.ids is None for one in self.lengths):
            return [0] * len(self.lengths)
        seen: set[bytes] = set()
        shared = []
        block_tokens = self.shape.footprint.block_tokens
        for one in self.lengths:
            digests = chain(Request("", one.ids, 1), block_tokens) if one.ids is not None else ()
            known = next((i for i, digest in enumerate(digests) if digest not in seen), len(digests))
            shared.append(known * block_tokens)
            seen.update(digests[known:])
        return shared

    def in_flight(self, sweep: int) -> float:
        """Rows that a sweep has tokens for, where prompts of those who follow take their part of it."""
        return sweep * self.generated / (self.computed_prompt + self.generated)

    @cached_property
    def computed_prompt(self) -> float:
        """Mean tokens of a prompt that no earlier row has; its last one is always computed."""
        return max(1.0, self.prompt - sum(self.shared) / len(self.lengths))

    @cached_property
    def generated(self) -> float:
        """Mean tokens that a row generates."""
        return sum(one.generated for one in self.lengths) / len(self.lengths)

    def worth(self, sweep_s: float, tok_s: float) -> float:
        """What is wanted of a plan, more being better."""
        return worth(self.latency, self.token_s, sweep_s, tok_s)

    def extended(self, policy: Policy) -> Policy:
        """A placement's policy with what the placement rule does not know of."""
        return replace(
            policy,
            weight_bits=self.weight_bits,
            lm_head_bits=self.lm_head_bits,
            kv_bits=self.kv_bits,
        )

    def on_disk(self, homes: Sequence[Tier]) -> int:
        """Bytes of pages that rest on disk."""
        return sum(page.nbytes for page, home in zip(self.shape.pages, homes, strict=True) if home == "disk")


def worth(latency: bool, token_s: float | None, sweep_s: float, tok_s: float) -> float:
    """What is wanted of sweeps of so many seconds, and so many tokens a second: a bound on time per token comes first.

    latency: the shortest sweep is wanted, unless there is a bound. token_s: that bound.
    """
    late = token_s is not None and sweep_s > token_s
    return -sweep_s if late or (latency and token_s is None) else tok_s
