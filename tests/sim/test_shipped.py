from fractions import Fraction
from pathlib import Path

import pytest

from penstock.errors import UserError
from penstock.sim.initial import initial_state
from penstock.sim.overrides import read_settings, with_settings
from penstock.sim.scenario import Initial, Scenario, Start
from penstock.sim.scenario_file import parse
from penstock.sim.shipped import SHIPPED, document_of

EXAMPLES = Path(__file__).parents[2] / "examples"


def scenario(name: str) -> Scenario:
    return parse(document_of(name), name).scenario


@pytest.mark.parametrize("name", SHIPPED)
def test_each_is_named_as_it_is_asked_for_and_can_begin(name: str) -> None:
    assert scenario(name).name == name
    start = initial_state(scenario(name))
    assert start.occupied_bytes <= scenario(name).memories.hbm_capacity_bytes


def test_sizes_are_those_of_the_studies() -> None:
    legacy, small, large, mha = (scenario(f"seed-{name}") for name in ("003-legacy", "003", "004", "004-mha"))
    assert legacy.weights_bytes == 32 * (4 * 8192**2 * 2 + 2 * 8192 * 16384 * 2)
    assert (legacy.weight_capacity_bytes, legacy.kv_bytes) == (10**9, 2 * 8192 * 2)
    assert (small.kv_bytes * small.layers, small.memories.hbm_capacity_bytes) == (10**6, 4 * 10**9)
    assert large.weights_bytes == 150 * 10**9
    assert (large.kv_bytes * 32, mha.kv_bytes * 32) == (512 * 1024, 2 * 1024**2)
    assert large.memories.best_share == Fraction(4915, 5815)


def test_weights_leave_room_for_the_prefill_kv_of_seed_004() -> None:
    for name in ("seed-004", "seed-004-mha"):
        start = initial_state(scenario(name))
        assert start.items.all()
        assert start.slots - start.items.size <= 32
        assert scenario(name).initial.start is Start.HBM


@pytest.mark.parametrize("name", ["seed-004", "seed-004-mha"])
def test_seed_004_takes_its_other_start(name: str) -> None:
    document = with_settings(document_of(name), read_settings("--set", ["omega=0.8,phi=0.8"]))
    other = parse(document, name).scenario
    assert other.initial.start is Start.FRACTION
    assert (other.initial.omega, other.initial.phi) == (Fraction(4, 5), Fraction(4, 5))


def test_seed_004_starts_in_the_ratio_of_the_bandwidths() -> None:
    document = with_settings(document_of("seed-004"), read_settings("--set", ["init=ratio"]))
    other = parse(document, "seed-004").scenario
    assert other.initial == Initial(Start.RATIO)
    assert 0 < initial_state(other).items.sum() < initial_state(other).items.size


def test_a_sixteenth_has_the_bytes_of_the_whole() -> None:
    whole, part = scenario("seed-004-mha"), scenario(str(EXAMPLES / "seed-004-mha-16th.toml"))
    assert part.kv_bytes == 16 * whole.kv_bytes
    assert (part.prefill_tokens, part.decode_tokens) == (whole.prefill_tokens // 16, whole.decode_tokens // 16)
    same = ("layers", "attn_bytes", "mlp_bytes", "memories", "initial", "prefill_kv_bytes")
    assert [getattr(part, key) for key in same] == [getattr(whole, key) for key in same]


def test_batches_multiply_kv() -> None:
    assert scenario("reasoning-70b").kv_bytes * 80 == 16 * 320 * 1024
    assert scenario("reasoning-70b").weights_bytes == 70_600_000_000
    assert scenario("llama70b-b8").kv_bytes * 80 == 8 * 320 * 1024
    assert scenario("llama70b-b8").initial.phi == Fraction(4, 5)


def test_a_name_that_is_neither_lists_those_there_are() -> None:
    with pytest.raises(UserError, match=r"'seed-005' is neither a file nor one of seed-003, .*"):
        document_of("seed-005")


def test_files_lie_beside_the_scenario_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('placement = "mine.py:Mine"\n[trace]\nfile = "a.trace"\n')
    document = document_of(str(tmp_path / "a.toml"))
    assert document["trace"]["file"] == str(tmp_path / "a.trace")
    assert document["placement"] == f"{tmp_path / 'mine.py'}:Mine"
