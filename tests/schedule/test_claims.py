import pytest
from tests.schedule.fake_engine import CPU, ONE, FakeEngine, policy

from penstock.plan.policy import Shares, Tier


@pytest.mark.parametrize("tier, rows", [("cpu", 5), ("disk", 11)])  # tails rest on the tier of new keys, not on disk
def test_a_shared_header_is_counted_once(tier: Tier, rows: int) -> None:
    capacity: dict[Tier, int] = {"cpu": 1000, tier: 300}  # 30 blocks
    engine = FakeEngine(policy(rows=99, sweep=400, kv=Shares.from_mapping({tier: 1.0})), ONE, capacity, 4)
    for tail in range(30):
        engine.add((*range(80), 1000 + tail, 0, 0), 30)  # 20 blocks alike, one block of its own, and more to come
    running = [engine.scheduler.running for _, _ in zip(engine.sweeps(), range(3), strict=False)]
    assert running[0] == 1 and max(running) == rows
    engine.run()
    assert engine.scheduler.shared_tokens >= 29 * 80


@pytest.mark.parametrize("rows, bytes_", [(200, 100_000), (8, 100_000), (200, 600), (8, 400)])
def test_a_header_of_many_requests_is_computed_once(rows: int, bytes_: int) -> None:
    engine = FakeEngine(policy(rows=rows, sweep=512, batch=512, kv=CPU), ONE, {"cpu": bytes_}, 16)
    tails = [17 + tail % 7 for tail in range(200)]
    for at, tail in enumerate(tails):
        engine.add((*range(400), *[1000 + at] * tail), 2)
    engine.run()
    assert len(engine.finished) == 200
    assert engine.prefilled <= 1.1 * (400 + sum(tails))
    assert engine.scheduler.shared_tokens >= 199 * 400


def test_rows_that_wait_for_an_owner_claim_all_that_they_may_need() -> None:
    engine = FakeEngine(policy(rows=9, sweep=20), ONE, {"cpu": 150}, 4)
    for tail in range(9):
        engine.add((*range(16), 1000 + tail), 4)
    next(engine.sweeps())
    assert engine.scheduler.running == 2  # 5 blocks and one ahead for each of two
