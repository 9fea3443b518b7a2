"""What the rule is told, a model's footprint, a job, budgets and wishes, and what it answers. No torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from penstock.plan.policy import Policy, Shares, Tier


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model takes, in bytes.

    pages: every page that streams or rests, in order. tables: indices of embedding pages, which are read by row when
    they do not rest in memory. core: always resident. call_bytes: per token of a call. logit_bytes: per row whose
    logits are wanted. kv_block: one KV block over all layers and groups. state: recurrent state per row, kept on the
    compute tier; where there is any, prompts are not cut. state_layer: the largest part of it at one layer. open_block:
    of a row's newest KV block where full ones are packed, kept there too. staged_layer: the largest block of a single
    layer. query_bytes, answer_bytes: per token and layer, what attention beside a gpu is asked with and answers;
    key_bytes, found_bytes: new keys and values, and what all of them together gave, where all attention runs there.
    transforms: a module transforms cached keys before they are attended to, so that they must come to it. call_tokens:
    of one call, from which on products are no faster. layers: the decoder layer of each page, None for those of none.
    joined: why layers cannot be computed on two processors, None where they can.
    """

    pages: Sequence[int]
    tables: frozenset[int]
    core: int
    call_bytes: int
    logit_bytes: int
    kv_block: int
    block_tokens: int
    state: int = 0
    state_layer: int = 0
    staged_layer: int = 0
    call_tokens: int = 1024
    open_block: int = 0
    query_bytes: int = 0
    answer_bytes: int = 0
    key_bytes: int = 0
    found_bytes: int = 0
    transforms: bool = False
    layers: Sequence[int | None] = ()
    joined: str | None = None

    def first_pages(self, layers: int) -> frozenset[int]:
        """The pages of the first so many decoder layers."""
        return frozenset(i for i, layer in enumerate(self.layers) if layer is not None and layer < layers)

    @property
    def decoders(self) -> int:
        """Decoder layers that have pages."""
        return len({layer for layer in self.layers if layer is not None})

    @property
    def kept(self) -> int:
        """What a row keeps on the compute tier beside its blocks."""
        return self.state + self.open_block


@dataclass(frozen=True, slots=True)
class Length:
    """One row of a job: tokens of its prompt, and how many it generates. ids: its prompt, where prefixes may be shared.

    most: tokens that it may generate, where that is more than it will.
    """

    prompt: int
    generated: int
    ids: Sequence[int] | None = None
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be generated: prompts, their mean and largest length with the tokens that follow.

    lengths: of the rows that are known, which the others are like. held: bytes of cpu memory that prompts and answers
    take until the last one has ended. scored: the logits of all tokens are wanted, not of each row's last one alone.
    """

    prompts: int
    mean_tokens: int
    longest_tokens: int
    longest_prompt: int
    lengths: Sequence[Length] = ()
    scored: bool = False
    held: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person fixed; None where the rule decides. attention: the tier that attends to KV. cpu_layers, cpu_tokens:
    as a Policy has them; layers are computed on the cpu beside a gpu only where that is asked for.
    """

    weights: Shares | None = None
    kv: Shares | None = None
    activations: Shares | None = None
    rows: int | None = None
    sweep_tokens: int | None = None
    batch_tokens: int | None = None
    slots: int | None = None
    batch_size: int | None = None
    num_batches: int | None = None
    attention: Tier | None = None
    cpu_layers: int | None = 0
    cpu_tokens: int | None = None

    def kv_tier(self, compute: Tier) -> Tier:
        """As ``Policy.kv_tier``."""
        return "cpu" if self.cpu_layers else compute

    def attends_beside(self, compute: Tier) -> bool:
        """Whether the cpu attends beside a gpu."""
        return compute == "gpu" and (self.attention == "cpu" or bool(self.cpu_layers))

    @property
    def needs_gpu(self) -> bool:
        """Whether this makes sense with a gpu alone."""
        places = [shares for shares in (self.weights, self.kv, self.activations) if shares is not None]
        return any(shares.gpu > 0 for shares in places) or self.attention == "gpu" or self.cpu_layers != 0

    @property
    def is_given(self) -> bool:
        """Whether weights, KV and batch shape are all fixed, so that there is nothing to search."""
        shape = self.rows is not None or self.batch_size is not None
        return self.weights is not None and self.kv is not None and shape and self.cpu_layers is not None


@dataclass(frozen=True, slots=True)
class Placement:
    """The rule's answer.

    homes: tier per page. kv: block bytes per tier. staging: bytes of one KV staging buffer. reserved: bytes per tier
    that neither KV nor pages may take.
    """

    policy: Policy
    homes: tuple[Tier, ...]
    kv: Mapping[Tier, int]
    staging: int
    reserved: Mapping[Tier, int]

    @property
    def needs_gpu(self) -> bool:
        """Whether this makes sense with a gpu alone."""
        policy = self.policy
        there = "gpu" in self.homes or any(part.gpu > 0 for part in (policy.weights, policy.kv, policy.activations))
        return there or policy.attention == "gpu" or policy.cpu_layers > 0


@dataclass(frozen=True, slots=True)
class Ledger:
    """Budgets and what is taken already (interpreter, libraries), in bytes per tier.

    slack: the part of a budget that is counted as taken, and so grows with it.
    """

    budget: Mapping[Tier, int]
    taken: Mapping[Tier, int]
    slack: Mapping[Tier, float] = field(default_factory=dict)

    def free(self, tier: Tier) -> int:
        """Bytes that may still be taken."""
        return self.budget.get(tier, 0) - self.taken.get(tier, 0)

    def least(self, tier: Tier, needed: int) -> int:
        """The budget that leaves so many bytes free."""
        slack = self.slack.get(tier, 0.0)
        fixed = self.taken.get(tier, 0) - int(slack * self.budget.get(tier, 0))
        return math.ceil((fixed + needed) / (1 - slack))
