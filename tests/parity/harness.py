"""Running a tiny checkpoint through an engine of a given placement and shape, noting what it did."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from penstock.engine.build import assemble, blueprint
from penstock.engine.engine import Engine
from penstock.memory.clock import Clock
from penstock.memory.device import open_device
from penstock.model import precision, source
from penstock.plan.policy import Tier
from penstock.plan.rule import decide
from penstock.plan.shares import parse_shares
from penstock.plan.types import Asked, Job, Ledger
from penstock.sampling import Sampling
from penstock.schedule.types import Sweep

PAGE_BYTES = 20_000
PLENTY: dict[Tier, int] = {"gpu": 1 << 30, "cpu": 1 << 30, "disk": 1 << 30}


def greedy(max_tokens: int, stop_ids: Sequence[int] = ()) -> Sampling:
    """Greedy sampling of so many tokens."""
    return Sampling(
        temperature=0.0, top_p=1.0, top_k=0, seed=0, max_tokens=max_tokens, stop=(), stop_ids=frozenset(stop_ids)
    )


@dataclass(slots=True)
class Trail:
    """What an engine did: its sweeps, every logits that a token was drawn from (by row and position), bytes by lane."""

    sweeps: list[Sweep] = field(default_factory=list)
    moved: Mapping[str, int] = field(default_factory=dict)
    logits: dict[int, dict[int, torch.Tensor]] = field(default_factory=dict)

    @property
    def micro_batches(self) -> int:
        """Of the sweep with the most."""
        return max(len(sweep.micro_batches) for sweep in self.sweeps)

    @property
    def rows(self) -> int:
        """In flight at most."""
        return max(len({span.row for batch in sweep.micro_batches for span in batch}) for sweep in self.sweeps)

    @property
    def dropped(self) -> int:
        """Rows given up, as often as that happened."""
        return sum(len(sweep.dropped) for sweep in self.sweeps)

    @property
    def chunks(self) -> int:
        """Spans of more than one token that go on with a prompt."""
        return sum(s.first > 0 and s.count > 1 for sweep in self.sweeps for batch in sweep.micro_batches for s in batch)

    def watch(self, engine: Engine) -> None:
        """Note from here on what an engine does."""
        inner = engine.scheduler.next

        def following() -> Sweep | None:
            sweep = inner()
            if sweep is not None:
                self.sweeps.append(sweep)
            return sweep

        def observe(row: int, position: int, logits: torch.Tensor) -> None:
            self.logits.setdefault(row, {})[position] = logits.cpu().clone()

        engine.scheduler.next = following  # type: ignore[method-assign]
        engine.observe = observe


@contextlib.contextmanager
def engine_of(
    model: Path,
    lengths: Sequence[int],
    count: int,
    *,
    device: str = "cpu",
    spare_blocks: int | None = None,
    block_tokens: int | None = None,
    dtype: str = "float32",
    page_bytes: int = PAGE_BYTES,
    clock: Clock | None = None,
    **asked: Any,
) -> Iterator[Engine]:
    """An engine for prompts of these lengths and ``count`` tokens each.

    spare_blocks: give the tier of new keys KV blocks for the longest row and so many more, and nothing beyond.
    asked: as the command line's flags.
    """
    opened = open_device(device)
    found = source.resolve(str(model))
    chosen = precision.choose(dtype, found.checkpoint_dtype, "cpu", False, packed_in=found.packed_in("cpu"))
    plan = blueprint(found, chosen, one_group=opened.compute_tier == "gpu", page_bytes=page_bytes)
    plan = replace(plan, kv=replace(plan.kv, tokens=block_tokens or plan.kv.tokens))
    shares = {name: parse_shares(asked.pop(name)) for name in ("weights", "kv", "activations") if name in asked}
    totals = [length + count for length in lengths]
    job = Job(len(totals), -(-sum(totals) // len(totals)), max(totals), max(lengths))
    footprint = plan.footprint()
    placement = decide(footprint, job, Ledger(PLENTY, {}), Asked(**shares, **asked), opened.compute_tier, 0)
    if spare_blocks is not None:
        blocks = -(-job.longest_tokens // footprint.block_tokens) + spare_blocks
        newest = placement.policy.kv_tier(opened.compute_tier)
        placement = replace(placement, kv={**placement.kv, newest: blocks * footprint.kv_block})
    with tempfile.TemporaryDirectory() as offload:
        engine = assemble(plan, placement, opened, clock or Clock(), Path(offload))
        try:
            yield engine
        finally:
            engine.close()
            opened.close()


def run(model: Path, prompts: Sequence[Sequence[int]], count: int, **how: Any) -> tuple[list[list[int]], Trail]:
    """Greedy tokens for every prompt, and the engine's trail; rows are numbered like prompts."""
    trail, clock = Trail(), Clock()
    with engine_of(model, [len(p) for p in prompts], count, clock=clock, **how) as engine:
        trail.watch(engine)
        rows = [engine.add(str(i), prompt, greedy(count)) for i, prompt in enumerate(prompts)]
        assert rows == list(range(len(prompts)))
        while engine.sweep() is not None:
            pass
        tokens = [engine.sequences[row].generated for row in rows]
    trail.moved = clock.read().nbytes
    return tokens, trail
