from tests.cli.fake_llm import RUN

from penstock.cli.summary import summary


def test_a_table_for_many_prompts() -> None:
    gib = 2**30
    run = {
        **RUN,
        "prompts": 2000,
        "tokens_in": 961_204,
        "tokens_out": 298_113,
        "seconds": 21480.0,
        "total_tok_s": 13.9,
        "rows_mean": 188.4,
        "sweeps": 1582,
        "links": {"disk_to_cpu": {"bytes": 52 * 2**40, "seconds": 19058.0}, "cpu_to_gpu": {"bytes": 0, "seconds": 0.0}},
        "peak_bytes": {"gpu": int(11.1 * gib), "cpu": int(22.3 * gib), "disk": 0},
        "budget_bytes": {"gpu": 12 * gib, "cpu": 24 * gib, "disk": 0},
    }
    assert summary(run).splitlines() == [
        "2,000 prompts · 961,204 tokens in · 298,113 out · 5 h 58 min",
        "throughput  13.9 tok/s in all · prefill 44.7 · decode 13.9",
        "sweeps      1,582, with 188 rows on average",
        "busy        disk→cpu 87 % · cpu-compute 30 %",
        "waited for  disk→cpu 71 %",
        "moved       disk→cpu 52 TiB at 3 GB/s",
        "placed      weights cpu 130 MiB + disk 129 MiB · KV cpu 1 MiB",
        "memory      gpu 11.1 GiB of 12 GiB allowed · cpu 22.3 GiB of 24 GiB allowed",
    ]


def test_one_prompt_with_all_in_memory_needs_two_lines() -> None:
    placed = {**RUN["placed_bytes"], "weights": {"gpu": 0, "cpu": 2**28, "disk": 0}}
    lines = summary({**RUN, "placed_bytes": placed, "waits": {}}).splitlines()
    assert lines == ["9 tokens in 1.1 s · 8.2 tok/s", "memory: 612 MiB at most, of 22 GiB allowed"]


def test_several_tiers_are_named_for_one_prompt_too() -> None:
    run = {**RUN, "peak_bytes": {"gpu": 2**30, "cpu": 2**30, "disk": 0}, "budget_bytes": {"gpu": 2**31}}
    assert summary(run).splitlines()[-1] == "memory: gpu 1 GiB at most, of 2 GiB allowed · cpu 1 GiB at most"
