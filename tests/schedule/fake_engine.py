"""Stands for the engine: executes sweeps on blocks of marks and checks what they promise."""

import contextlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from hypothesis import strategies as st

from penstock.errors import UserError
from penstock.plan.policy import TIERS, Policy, Shares, Tier
from penstock.schedule.scheduler import Scheduler
from penstock.schedule.types import Block, GroupSpec, Request, Row, Sweep

CPU = Shares(cpu=1.0)
HALF = Shares(cpu=0.5, disk=0.5)
ROOMY = dict.fromkeys(TIERS, 10000)
ONE = [GroupSpec(10)]
STEPS = ["add", "sweep", "abort", "recompute"]
Place = tuple[int, Tier, int]


def policy(rows: int = 8, sweep: int = 64, batch: int = 64, kv: Shares = CPU, b: int = 0, number: int = 0) -> Policy:
    return Policy(
        CPU, kv, CPU, rows, sweep, batch, admission="static" if b else "continuous", batch_size=b, num_batches=number
    )


@dataclass
class FakeEngine:
    """Executes sweeps on blocks that hold marks instead of keys, and checks everything that a sweep promises.

    The mark of a position is a hash of all tokens up to it, as keys and values depend on them all.
    """

    policy: Policy
    groups: Sequence[GroupSpec]
    capacity: Mapping[Tier, int]
    block_tokens: int
    chunking: bool = True
    kv_tier: Tier = "cpu"
    sharing: bool = True
    ends: Mapping[int, int] = field(default_factory=dict)  # row: generated tokens after which it says it ended
    computed: dict[int, int] = field(default_factory=dict)
    sampled: dict[int, int] = field(default_factory=dict)
    finished: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    moved: int = 0
    prefilled: int = 0  # prompt tokens computed

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(
            self.policy,
            self.groups,
            self.capacity,
            self.block_tokens,
            self.kv_tier,
            self.chunking,
            self.sharing,
        )
        self.bytes: dict[Place, dict[int, int]] = {}
        self.rows: dict[int, Row] = {}
        self.marks: dict[int, list[int]] = {}

    def add(self, prompt: int | Sequence[int], max_tokens: int, regime: str | None = "") -> int:
        """Queue a prompt: its tokens, or how many of a prompt that begins like no other."""
        own = 1_000_000 * (len(self.rows) + 1)
        tokens = range(own, own + prompt) if isinstance(prompt, int) else prompt
        row_id = self.scheduler.add(Request(f"r{len(self.rows)}", tokens, max_tokens, regime))
        self.rows[row_id] = self.scheduler.row(row_id)
        self.marks[row_id] = list(accumulate(tokens, lambda mark, token: hash((mark, token)), initial=hash(regime)))[1:]
        return row_id

    def recompute(self, row_id: int) -> None:
        """Tell a row to start again; if it runs, its keys are others from now on."""
        if self.rows[row_id].id in self.scheduler._room.rows:
            self.marks[row_id] = [hash((mark, "again")) for mark in self.marks[row_id]]
        self.scheduler.recompute(row_id)

    def mark(self, row: Row, position: int) -> int:
        """What the block of a position must hold; generated tokens differ between rows."""
        marks = self.marks[row.id]
        while len(marks) <= position:
            marks.append(hash((marks[-1], -row.id - 1)))
        return marks[position]

    def sweeps(self) -> Iterator[Sweep]:
        while (sweep := self.scheduler.next()) is not None:
            self.check_places()
            self.execute(sweep)
            yield sweep

    def take(self, steps: Sequence[str], chance: random.Random, prompts: Sequence[int | Sequence[int]]) -> list[int]:
        """Add, sweep, abort and recompute by chance; returns the rows that were added."""
        sweeps = self.sweeps()
        for step in steps:
            if step == "add":
                with contextlib.suppress(UserError):
                    self.add(chance.choice(prompts), chance.randint(1, 9))
            elif step == "sweep":
                if next(sweeps, None) is None:
                    sweeps = self.sweeps()
            elif self.rows and step == "recompute":
                self.recompute(chance.choice(sorted(self.rows)))
            elif self.rows:
                row_id = chance.choice(sorted(self.rows))
                self.scheduler.abort(row_id)
                if row_id not in self.finished:
                    self.finished.append(row_id)
        return sorted(self.rows)

    def run(self) -> "FakeEngine":
        for count, _ in enumerate(self.sweeps()):
            assert count < 20_000
        return self

    def live(self) -> Iterator[tuple[Row, int, Block]]:
        for row in self.rows.values():
            for table in row.tables if row.id not in self.finished else ():
                yield from ((row, index, block) for index, block in enumerate(table) if block is not None)

    def check_places(self) -> None:
        blocks = {id(block): block for _, _, block in self.live()}
        references = Counter(id(block) for _, _, block in self.live())
        assert all(block.references == references[key] for key, block in blocks.items())
        places = [(block.group, block.tier, block.id) for block in blocks.values()]
        assert len(places) == len(set(places)), "two blocks in one place"
        pool = self.scheduler._room.pool
        for tier in TIERS:
            used = sum(self.groups[group].block_bytes for group, at, _ in places if at == tier)
            assert used == self.capacity.get(tier, 0) - pool.free(tier)
            assert used <= self.scheduler.blocks_in_use(tier) <= self.capacity.get(tier, 0)
            if not self.scheduler._room.prefixes._wanted:
                assert used == self.scheduler.blocks_in_use(tier), "blocks linger that nobody wants"
            shared = [b for b in blocks.values() if b.tier == tier and self.groups[b.group].window is None]
            doubled = sum((b.references - 1) * self.groups[b.group].block_bytes for b in shared)
            assert pool.doubled(tier) == doubled
        for row, index, block in self.live():
            assert block.references == 1 or index < len(row.chain)
            if block.tier != self.kv_tier:
                home, sunk = TIERS.index(row.home), TIERS.index(block.tier)
                at_home = home <= sunk or index < len(row.chain)
                assert at_home and (index + 1) * self.block_tokens <= row.computed, "a tail left home"

    def execute(self, sweep: Sweep) -> None:
        for move in sweep.moves:
            assert move.source[0] != move.target[0]
            self.bytes[move.group, *move.target] = dict(self.bytes[move.group, *move.source])
            self.moved += 1
        for row_id in sweep.dropped:
            self.computed[row_id] = 0
            self.dropped.append(row_id)
        assert sweep.micro_batches
        samples = []
        for batch in sweep.micro_batches:
            tokens = sum(span.count for span in batch)
            assert tokens <= self.policy.batch_tokens or (not self.chunking and len(batch) == 1)
            for span in batch:
                row = self.rows[span.row]
                known = self.computed.get(span.row, 0)
                assert span.count > 0 and (span.first == known or not known), "out of order, or twice"
                assert span.first == known or (row.chain and span.first % self.block_tokens == 0)
                assert span.row not in self.finished
                self.prefilled += max(0, min(span.first + span.count, len(row.request.prompt)) - span.first)
                self.write_and_read(row, span.first, span.count)
                self.computed[span.row] = span.first + span.count
                assert span.samples == (self.computed[span.row] == row.length)
                assert self.chunking or span.samples
                samples += [span.row] * span.samples
        assert len(samples) == len(set(samples))
        assert self.chunking is False or self.policy.admission == "static" or sweep.tokens <= self.policy.sweep_tokens
        for row_id in samples:
            self.sampled[row_id] = self.sampled.get(row_id, 0) + 1
        ended = {row_id for row_id in samples if self.sampled[row_id] == self.ends.get(row_id)}
        finished = self.scheduler.done(sweep, ended)
        assert ended <= set(finished)
        self.finished += finished

    def write_and_read(self, row: Row, first: int, count: int) -> None:
        for group, (spec, table) in enumerate(zip(self.groups, row.tables, strict=True)):
            for position in range(first, first + count):
                block = table[position // self.block_tokens]
                assert block is not None and block.tier == self.kv_tier
                assert block.references == 1 and block.digest is None, "a shared block is written to"
                held = self.bytes.setdefault((group, block.tier, block.id), {})
                held[position % self.block_tokens] = self.mark(row, position)
            reach = 0 if spec.window is None else max(0, first - spec.window + 1)
            for position in range(reach, first + count):
                block = table[position // self.block_tokens]
                assert block is not None, "a window's block was freed too early"
                held = self.bytes[group, block.tier, block.id]
                assert held.get(position % self.block_tokens) == self.mark(row, position), "KV is not this row's"


@st.composite
def engines(draw: st.DrawFn, sharing: bool = False) -> FakeEngine:
    """Engines of few rows and little room; sharing: only those whose rows share blocks."""
    groups = draw(
        st.lists(
            st.builds(GroupSpec, st.integers(1, 3), st.none() | st.integers(1, 12)),
            min_size=1,
            max_size=3,
        )
    )
    stride = sum(group.block_bytes for group in groups)
    tiers: list[Tier] = draw(st.sampled_from([["cpu"], ["disk"], ["cpu", "disk"], ["gpu", "cpu", "disk"]]))
    kv = Shares(**{tier: 1 / len(tiers) for tier in tiers})
    kv_tier: Tier = "gpu" if "gpu" in tiers else "cpu"
    capacity = {tier: stride * draw(st.integers(1, 12)) for tier in {*tiers, kv_tier}}
    rows, batch = draw(st.integers(1, 6)), draw(st.integers(1, 20))
    static = not sharing and draw(st.booleans())
    made = policy(rows, draw(st.integers(1, 40)), batch, kv, *((draw(st.integers(1, 3)), 2) if static else (0, 0)))
    ends = draw(st.dictionaries(st.integers(0, 7), st.integers(1, 6), max_size=4))
    chunking = sharing or draw(st.booleans())
    return FakeEngine(made, groups, capacity, draw(st.integers(1, 4)), chunking, kv_tier, ends=ends)
