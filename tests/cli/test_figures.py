from penstock.cli import figures


def test_size_of_a_budget_is_in_the_budgets_unit() -> None:
    gib = 2**30
    assert figures.size_of(int(10.7 * gib), 12 * gib) == "10.7/12 GiB"
    assert figures.size_of(300 * 2**20, 12 * gib) == "0.3/12 GiB"
    assert figures.size_of(gib, None) == "1 GiB"
    assert figures.size_of(0, 500) == "0/500 B"


def test_rates_and_shares() -> None:
    assert [figures.bandwidth(n, 2.0) for n in (2_800_000_000, 1_740_000_000)] == ["1.4 GB/s", "870 MB/s"]
    assert figures.bandwidth(5, 0.0) == "0 B/s"
    assert [figures.speed(x) for x in (1250.4, 13.62, 8.0, 0.0421, 0.0)] == ["1,250", "13.6", "8", "0.042", "0"]
    assert [figures.share(x) for x in (0.0, 0.001, 0.714, 1.0)] == ["0 %", "<1 %", "71 %", "100 %"]


def test_words() -> None:
    assert [figures.count(n, "row") for n in (1, 2000)] == ["1 row", "2,000 rows"]
    assert figures.link("disk_to_cpu") == "disk→cpu"
