from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import UserError
from penstock.plan.policy import TIERS, Policy, Shares, Tier
from penstock.schedule.scheduler import Scheduler
from penstock.schedule.types import Block, GroupSpec, Request, Row, Sweep

CPU = Shares(cpu=1.0)
HALF = Shares(cpu=0.5, disk=0.5)
Place = tuple[int, Tier, int]


def policy(rows: int = 8, sweep: int = 64, batch: int = 64, kv: Shares = CPU, b: int = 0, number: int = 0) -> Policy:
    return Policy(
        CPU, kv, CPU, rows, sweep, batch, admission="static" if b else "continuous", batch_size=b, num_batches=number
    )


@dataclass
class FakeEngine:
    """Executes sweeps on blocks that hold (row, position) marks, and checks everything that a sweep promises."""

    policy: Policy
    groups: Sequence[GroupSpec]
    capacity: Mapping[Tier, int]
    block_tokens: int
    chunking: bool = True
    compute_tier: Tier = "cpu"
    ends: Mapping[int, int] = field(default_factory=dict)  # row: generated tokens after which it says it ended
    computed: dict[int, int] = field(default_factory=dict)
    sampled: dict[int, int] = field(default_factory=dict)
    finished: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    moved: int = 0

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(
            self.policy, self.groups, self.capacity, self.block_tokens, self.compute_tier, self.chunking
        )
        self.bytes: dict[Place, dict[int, tuple[int, int]]] = {}
        self.rows: dict[int, Row] = {}

    def add(self, prompt: int, max_tokens: int) -> int:
        row_id = self.scheduler.add(Request(f"r{len(self.rows)}", range(prompt), max_tokens))
        self.rows[row_id] = self.scheduler.row(row_id)
        return row_id

    def sweeps(self) -> Iterator[Sweep]:
        while (sweep := self.scheduler.next()) is not None:
            self.check_places()
            self.execute(sweep)
            yield sweep

    def run(self) -> "FakeEngine":
        for count, _ in enumerate(self.sweeps()):
            assert count < 20_000
        return self

    def live(self) -> Iterator[tuple[Row, int, Block]]:
        for row in self.rows.values():
            for table in row.tables if row.id not in self.finished else ():
                yield from ((row, index, block) for index, block in enumerate(table) if block is not None)

    def check_places(self) -> None:
        places = [(block.group, block.tier, block.id) for _, _, block in self.live()]
        assert len(places) == len(set(places)), "a block serves two rows"
        for tier in TIERS:
            used = sum(self.groups[group].block_bytes for group, at, _ in places if at == tier)
            assert used == self.scheduler.blocks_in_use(tier) <= self.capacity.get(tier, 0)
        for row, index, block in self.live():
            if block.tier != self.compute_tier:
                assert block.tier == row.home and (index + 1) * self.block_tokens <= row.computed, "a tail left home"

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
                assert span.count > 0 and span.first == self.computed.get(span.row, 0), "out of order, or twice"
                assert span.row not in self.finished
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
                assert block is not None and block.tier == self.compute_tier
                self.bytes.setdefault((group, block.tier, block.id), {})[position % self.block_tokens] = (
                    row.id,
                    position,
                )
            reach = 0 if spec.window is None else max(0, first - spec.window + 1)
            for position in range(reach, first + count):
                block = table[position // self.block_tokens]
                assert block is not None, "a window's block was freed too early"
                held = self.bytes[group, block.tier, block.id]
                assert held[position % self.block_tokens] == (row.id, position), "KV was lost or overwritten"


@st.composite
def engines(draw: st.DrawFn) -> FakeEngine:
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
    compute_tier: Tier = "gpu" if "gpu" in tiers else "cpu"
    capacity = {tier: stride * draw(st.integers(1, 12)) for tier in {*tiers, compute_tier}}
    rows, batch = draw(st.integers(1, 6)), draw(st.integers(1, 20))
    static = draw(st.booleans())
    made = policy(rows, draw(st.integers(1, 40)), batch, kv, *((draw(st.integers(1, 3)), 2) if static else (0, 0)))
    ends = draw(st.dictionaries(st.integers(0, 7), st.integers(1, 6), max_size=4))
    return FakeEngine(made, groups, capacity, draw(st.integers(1, 4)), draw(st.booleans()), compute_tier, ends)


@settings(max_examples=120, deadline=None)
@given(engines(), st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=8))
def test_every_request_is_served_to_its_end(engine: FakeEngine, requests: list[tuple[int, int]]) -> None:
    asked = {}
    for prompt, max_tokens in requests:
        try:
            asked[engine.add(prompt, max_tokens)] = max_tokens
        except UserError:
            continue
    engine.run()
    assert sorted(engine.finished) == sorted(asked)
    for row_id in asked:
        assert 1 <= engine.rows[row_id].limit <= asked[row_id]
        assert engine.sampled[row_id] == min(engine.rows[row_id].limit, engine.ends.get(row_id, 99))
    assert all(engine.scheduler.blocks_in_use(tier) == 0 for tier in TIERS)
    assert engine.scheduler.running == engine.scheduler.waiting == 0


@settings(max_examples=50, deadline=None)
@given(engines(), st.lists(st.sampled_from(["add", "sweep", "abort", "recompute"]), max_size=40), st.randoms())
def test_rows_may_come_and_go_between_sweeps(engine: FakeEngine, steps: list[str], chance: st.DrawFn) -> None:
    aborted = set()
    sweeps = engine.sweeps()
    for step in steps:
        if step == "add":
            try:
                engine.add(chance.randint(1, 20), chance.randint(1, 9))
            except UserError:
                continue
        elif step == "sweep":
            if next(sweeps, None) is None:
                sweeps = engine.sweeps()
        elif engine.rows and step == "recompute":
            engine.scheduler.recompute(chance.choice(sorted(engine.rows)))
        elif engine.rows:
            row_id = chance.choice(sorted(engine.rows))
            engine.scheduler.abort(row_id)
            if row_id not in engine.finished:
                aborted.add(row_id)
                engine.finished.append(row_id)
    engine.run()
    assert sorted(engine.finished) == sorted(engine.rows)
    assert all(engine.scheduler.blocks_in_use(tier) == 0 for tier in TIERS)


ROOMY = dict.fromkeys(TIERS, 10000)
ONE = [GroupSpec(10)]


def shape(sweep: Sweep) -> list[list[tuple[int, int, int]]]:
    return [[(span.row, span.first, span.count) for span in batch] for batch in sweep.micro_batches]


def test_decode_and_prefill_share_a_sweep() -> None:
    engine = FakeEngine(policy(rows=3, sweep=8), ONE, ROOMY, 4)
    engine.add(3, 9)
    sweeps = engine.sweeps()
    assert shape(next(sweeps)) == [[(0, 0, 3)]]
    engine.add(10, 5)
    engine.add(2, 5)
    assert shape(next(sweeps)) == [[(0, 3, 1), (1, 0, 7)]]
    assert shape(next(sweeps)) == [[(0, 4, 1), (1, 7, 3), (2, 0, 2)]]
    assert shape(next(sweeps)) == [[(0, 5, 1), (1, 10, 1), (2, 2, 1)]]


def test_micro_batches_are_balanced_and_cut_prefills() -> None:
    engine = FakeEngine(policy(sweep=30, batch=20), ONE, ROOMY, 4)
    engine.add(26, 2)
    engine.add(4, 2)
    assert shape(next(engine.sweeps())) == [[(0, 0, 15)], [(0, 15, 11), (1, 0, 4)]]


def test_a_prefill_that_may_not_be_cut_goes_whole() -> None:
    engine = FakeEngine(policy(sweep=8, batch=6), ONE, ROOMY, 4, chunking=False)
    engine.add(20, 2)
    engine.add(5, 2)
    sweeps = engine.sweeps()
    assert shape(next(sweeps)) == [[(0, 0, 20)]]
    assert shape(next(sweeps)) == [[(0, 20, 1), (1, 0, 5)]]


def test_finished_rows_are_replaced_at_once() -> None:
    engine = FakeEngine(policy(rows=2), ONE, ROOMY, 4, ends={0: 1})
    for _ in range(3):
        engine.add(4, 3)
    running = [engine.scheduler.running for _ in engine.sweeps()]
    assert engine.finished == [0, 1, 2] and running == [1, 2, 1, 0]
    assert engine.sampled == {0: 1, 1: 3, 2: 3}


def test_static_groups_enter_together_and_end_together() -> None:
    engine = FakeEngine(policy(sweep=1, batch=6, b=2, number=2), ONE, ROOMY, 4)
    for prompt in (3, 5, 2, 2, 4):
        engine.add(prompt, 2)
    assert [shape(sweep) for sweep in engine.sweeps()] == [
        [[(0, 0, 3), (1, 0, 3)], [(2, 0, 2), (3, 0, 2)]],
        [[(1, 3, 2)]],
        [[(0, 3, 1), (1, 5, 1)], [(2, 2, 1), (3, 2, 1)]],
        [[(4, 0, 4)]],
        [[(4, 4, 1)]],
    ]


def test_homes_meet_the_shares_and_full_blocks_go_home() -> None:
    engine = FakeEngine(policy(kv=HALF, sweep=64), ONE, ROOMY, 4)
    for _ in range(4):
        engine.add(6, 4)
    next(sweeps := engine.sweeps())
    assert [row.home for row in engine.rows.values()] == ["cpu", "disk", "cpu", "disk"]
    assert engine.scheduler.blocks_in_use("disk") == 0
    sweep = next(sweeps)
    assert [(move.source[0], move.target) for move in sweep.moves] == [("cpu", ("disk", 0)), ("cpu", ("disk", 1))]
    tiers = [[block.tier for block in row.tables[0] if block] for row in engine.rows.values()]
    assert tiers == [["cpu", "cpu"], ["disk", "cpu"], ["cpu", "cpu"], ["disk", "cpu"]]


def test_windows_leave_blocks_behind() -> None:
    engine = FakeEngine(policy(), [GroupSpec(1, window=5), GroupSpec(1)], ROOMY, 4)
    engine.add(12, 6)
    next(sweeps := engine.sweeps())
    next(sweeps)
    assert [block is None for block in engine.rows[0].tables[0]] == [True, True, False, False]
    assert [block is None for block in engine.rows[0].tables[1]] == [False] * 4


def test_the_newest_row_is_dropped_and_recomputed() -> None:
    engine = FakeEngine(policy(rows=2), ONE, {"cpu": 60}, 4)
    engine.add(8, 12)
    engine.add(8, 9)
    engine.run()
    assert engine.dropped == [1] and engine.finished == [0, 1] and engine.sampled == {0: 12, 1: 9}


def test_the_newest_row_moves_down_where_kv_has_a_share_there() -> None:
    engine = FakeEngine(policy(rows=2, kv=Shares(cpu=0.99, disk=0.01)), ONE, {"cpu": 60, "disk": 100}, 4)
    engine.add(8, 12)
    engine.add(8, 9)
    engine.run()
    assert not engine.dropped and engine.moved >= 2 and engine.rows[1].home == "disk"


def test_admission_counts_blocks_in_use_and_one_ahead() -> None:
    engine = FakeEngine(policy(rows=9), ONE, {"cpu": 100}, 4)
    for _ in range(9):
        engine.add(8, 1000)
    next(engine.sweeps())
    assert engine.scheduler.running == 3  # 2 blocks each and one ahead, in 10


def test_a_row_that_memory_cannot_hold_to_its_end_stops_where_it_is_full() -> None:
    engine = FakeEngine(policy(), ONE, {"cpu": 30}, 4)
    row_id = engine.add(8, 1000)
    engine.run()
    assert engine.sampled == {row_id: 5}  # 12 positions, and the token after the last


@pytest.mark.parametrize("kv", [CPU, HALF])
def test_a_prompt_that_fits_no_memory_is_refused_with_bytes(kv: Shares) -> None:
    engine = FakeEngine(policy(kv=kv), [GroupSpec(2**20)], {"cpu": 2 * 2**20, "disk": 0}, 4)
    with pytest.raises(
        UserError, match=r"9 prompt tokens of request 'r0' need 3 MiB on cpu for KV, there are cpu 2 MiB"
    ):
        engine.add(9, 1)
    engine.add(8, 1)


def test_requests_without_tokens_are_refused() -> None:
    engine = FakeEngine(policy(), ONE, ROOMY, 4)
    for prompt, max_tokens in ((0, 1), (1, 0)):
        with pytest.raises(UserError, match="both must be at least 1"):
            engine.add(prompt, max_tokens)


def test_a_row_told_to_recompute_keeps_its_place() -> None:
    engine = FakeEngine(policy(rows=2), ONE, ROOMY, 4)
    for _ in range(3):
        engine.add(6, 4)
    next(sweeps := engine.sweeps())
    engine.scheduler.recompute(0)
    sweep = next(sweeps)
    assert shape(sweep) == [[(0, 0, 7), (1, 6, 1)]] and sweep.dropped == (0,)
    assert engine.run().sampled == {0: 4, 1: 4, 2: 4}


def test_unknown_rows() -> None:
    scheduler = FakeEngine(policy(), ONE, ROOMY, 4).scheduler
    scheduler.abort(7)
    with pytest.raises(KeyError):
        scheduler.row(7)
    assert scheduler.next() is None
