"""What the scheduler speaks in: requests and budgets in, sweeps out. Integers only; no torch, no clock."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock.plan.policy import Tier


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to be generated: its prompt's token ids and how many tokens may follow.

    regime: what besides the tokens decides the KV of the prompt, so that only prompts of one regime share blocks; None
    where this one shares none.
    """

    key: str
    prompt: Sequence[int]
    max_tokens: int
    regime: str | None = ""


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """Layers whose KV blocks have one shape and lifetime.

    block_bytes: bytes of one block over all layers of the group. window: keys a query can reach back to, itself
    included (blocks wholly before it are freed), or None for all.
    """

    block_bytes: int
    window: int | None = None

    def reach(self, block_tokens: int) -> int | None:
        """Full blocks at most that a query reaches into before its own block; None for all of them."""
        return None if self.window is None else -(-(self.window - 1) // block_tokens)


@dataclass(slots=True)
class Block:
    """``block_tokens`` tokens of KV in one group; ``id`` counts from 0 per (group, tier).

    references: rows whose tables hold it. digest: the hash that the prefix index knows it by, None where it does not.
    """

    group: int
    id: int
    tier: Tier
    references: int = 1
    digest: bytes | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """A row's share of a call: ``count`` tokens from position ``first``.

    samples: its last token's logits are wanted.
    """

    row: int
    first: int
    count: int
    samples: bool


@dataclass(frozen=True, slots=True)
class Move:
    """Copy one block's bytes (all layers of its group) between tiers, before the sweep computes."""

    group: int
    source: tuple[Tier, int]
    target: tuple[Tier, int]


@dataclass(frozen=True, slots=True)
class Sweep:
    """One pass over all pages: moves first, then every micro-batch at every page.

    Moves run in this order (a later one may reuse a place that an earlier one left). Micro-batches run in this order at
    each page: a row's prefill may go on from one micro-batch to the next. Spans write into blocks of the tier of new
    keys. dropped: rows whose KV was given up since the last sweep (they are recomputed later).
    """

    micro_batches: tuple[tuple[Span, ...], ...]
    moves: tuple[Move, ...] = ()
    dropped: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens computed in this sweep."""
        return sum(span.count for batch in self.micro_batches for span in batch)


@dataclass(slots=True)
class Row:
    """One sequence in flight. ``computed``: positions whose KV exists. ``tables[g]``: its blocks of group g in order;
    None where a window has left a block behind. ``home``: the tier that holds its full blocks, other than leading ones
    that it shares with rows of another home, and the oldest ones where that tier is short of room: these lie below.
    ``sunk``: leading blocks that do. ``limit``: tokens it may generate, which is the request's max_tokens unless memory
    holds no row of that length. ``turn``: rows admitted before it, ever. ``rested``: leading blocks known to lie off
    the tier of new keys.

    Sharing: ``chain``: hashes of the prompt blocks that it may share. ``begun``: whether it has taken over what was
    computed of them. ``listed``: how many of them it took over or gave to the index. ``awaits``: the hash that an older
    row computes first.
    """

    id: int
    request: Request
    home: Tier
    limit: int
    generated: int = 0
    computed: int = 0
    tables: list[list[Block | None]] = field(default_factory=list)
    turn: int = 0
    rested: int = 0
    sunk: int = 0
    chain: tuple[bytes, ...] = ()
    begun: bool = False
    listed: int = 0
    awaits: bytes | None = None

    @property
    def length(self) -> int:
        """Tokens known so far: the prompt's and the generated ones."""
        return len(self.request.prompt) + self.generated
