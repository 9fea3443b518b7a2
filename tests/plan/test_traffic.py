from penstock.plan.traffic import traffic_bytes


def test_bytes_grow_with_each_width_and_with_the_item() -> None:
    assert traffic_bytes(100, 10, 1, 4) == 4 * (2400 + 40 + 6)
    assert traffic_bytes(100, 10, 1, 2) * 2 == traffic_bytes(100, 10, 1, 4)
