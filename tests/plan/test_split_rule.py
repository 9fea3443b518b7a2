"""Where bytes lie if the cpu computes layers beside a gpu, and what goes with it."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import UserError
from penstock.plan.policy import Shares
from penstock.plan.rule import decide
from penstock.plan.types import Asked, Footprint, Job, Ledger, Placement

MIB = 1 << 20
LAYERS = 10
MODEL = Footprint(
    pages=[50 * MIB, 100 * MIB] * LAYERS + [60 * MIB],
    tables=frozenset({2 * LAYERS}),
    core=8 * MIB,
    call_bytes=100_000,
    logit_bytes=400_000,
    kv_block=2 * MIB,
    block_tokens=16,
    staged_layer=65_536,
    query_bytes=8192,
    key_bytes=4096,
    found_bytes=8192,
    layers=[*(layer for layer in range(LAYERS) for _ in range(2)), None],
)
JOB = Job(prompts=100, mean_tokens=64, longest_tokens=96, longest_prompt=64)


def placed(gpu_mib: int, cpu_mib: int, asked: Asked, model: Footprint = MODEL) -> Placement:
    ledger = Ledger({"gpu": gpu_mib * MIB, "cpu": cpu_mib * MIB, "disk": 1 << 40}, {"cpu": 400 * MIB})
    return decide(model, JOB, ledger, asked, "gpu", 200)


def test_the_first_layers_and_all_kv_are_on_the_cpu_and_the_gpu_is_for_the_others() -> None:
    placement = placed(1200, 8000, Asked(cpu_layers=4, cpu_tokens=16))
    assert placement.homes[:8] == ("cpu",) * 8 and placement.homes[8:20].count("gpu") > 8
    assert placement.policy.kv == Shares(cpu=1.0) and set(placement.kv) == {"cpu"}
    assert (placement.policy.cpu_layers, placement.policy.cpu_tokens, placement.policy.attention) == (4, 16, "cpu")
    assert placement.policy.rows == JOB.prompts


def test_shares_of_weights_count_the_layers_that_the_cpu_computes() -> None:
    asked = Asked(cpu_layers=4, weights=Shares(gpu=0.2, cpu=0.5, disk=0.3))
    placement = placed(4000, 8000, asked)
    held = {
        tier: sum(n for n, h in zip(MODEL.pages, placement.homes, strict=True) if h == tier)
        for tier in ("gpu", "cpu", "disk")
    }
    assert placement.homes[:8] == ("cpu",) * 8
    for tier, nbytes in held.items():
        assert nbytes == pytest.approx(asked.weights.of(tier) * sum(MODEL.pages), abs=100 * MIB)  # type: ignore[arg-type, union-attr]
    with pytest.raises(
        UserError, match="--weights puts 20% on cpu, and the first 4 layers, which are computed there, are 38%"
    ):
        placed(4000, 8000, replace(asked, weights=Shares(gpu=0.5, cpu=0.2, disk=0.3)))


@settings(deadline=None, max_examples=200)
@given(
    gpu_mib=st.integers(200, 3000),
    cpu_mib=st.integers(500, 5000),
    layers=st.integers(1, LAYERS),
    rows=st.none() | st.integers(1, 300),
    disk=st.sampled_from([0.0, 0.5, 1.0]),
    kept=st.sampled_from([0, MIB]),
)
def test_every_budget_is_kept_or_refused_with_one_that_would_do(
    gpu_mib: int, cpu_mib: int, layers: int, rows: int | None, disk: float, kept: int
) -> None:
    asked = Asked(cpu_layers=layers, cpu_tokens=16, rows=rows, kv=Shares(cpu=1 - disk, disk=disk))
    model = replace(MODEL, open_block=kept)
    for _ in range(2):
        try:
            placement = placed(gpu_mib, cpu_mib, asked, model)
            break
        except UserError as refusal:
            said = re.fullmatch(r"--(gpu|cpu)-memory .* The least that works is (\d+)MiB\.", str(refusal))
            assert said is not None, refusal
            gpu_mib, cpu_mib = (
                int(said[2]) if said[1] == tier else n for tier, n in (("gpu", gpu_mib), ("cpu", cpu_mib))
            )
    placement = placed(gpu_mib, cpu_mib, asked, model)  # the least of either, where it was too little
    for tier, budget in (("gpu", gpu_mib), ("cpu", cpu_mib - 400)):
        pages = sum(n for n, home in zip(model.pages, placement.homes, strict=True) if home == tier)
        assert pages + placement.kv.get(tier, 0) + placement.reserved[tier] <= budget * MIB  # type: ignore[arg-type, index]
    assert placement.homes[: 2 * layers] == ("cpu",) * 2 * layers and "gpu" not in placement.kv
