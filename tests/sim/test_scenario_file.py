import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from tests.sim.documents import document

from penstock.errors import UserError
from penstock.sim.memories import Duplex
from penstock.sim.scenario import Mode, Start, WeightOrder
from penstock.sim.scenario_file import parse, read_document


def complaint(**changes: Any) -> str:
    with pytest.raises(UserError) as error:
        parse(document(**changes), "small.toml")
    text = str(error.value)
    assert text.startswith("small.toml: ")
    assert "\n" not in text
    return text.removeprefix("small.toml: ")


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(document(trace=None)))
    (tmp_path / "a.toml").write_text(
        """
        name = "small"
        layers = 2
        w_attn_bytes = "40 B"
        w_mlp_bytes = 80
        kv_bytes = 10
        n_prefill = 8
        n_decode = 12
        hbm_capacity_bytes = 345
        skip_levels = [0.5]
        [bandwidths]
        hbm = "1 kB/s"
        ext_read = "0.2kB/s"
        ext_write = 200
        ext_internal = 400
        """
    )
    from_toml, from_json = (parse(read_document(tmp_path / name), name) for name in ("a.toml", "a.json"))
    assert from_toml == from_json


def test_units_are_what_they_say() -> None:
    given = parse(
        document(
            hbm_capacity_bytes="141 GB", kv_bytes="32 KiB", bandwidths=document()["bandwidths"] | {"hbm": "4915 GB/s"}
        ),
        "x",
    ).scenario
    assert given.memories.hbm_capacity_bytes == 141 * 10**9
    assert given.kv_bytes == 32 * 1024
    assert given.memories.hbm_bytes_per_s == 4915 * 10**9


def test_every_setting_arrives() -> None:
    given = parse(
        document(
            duplex="serial",
            mode="inclusive",
            init="fraction",
            omega=0.8,
            phi="1/3",
            weights="by-layer",
            compute_s="2us",
            fixed_s=0.5,
            placement="prefer-hbm",
            migration="alpha",
            options={"target": 0.7, "budget": "slack"},
            batch=3,
        ),
        "x",
    )
    scenario = given.scenario
    assert scenario.memories.duplex is Duplex.SERIAL
    assert scenario.mode is Mode.INCLUSIVE
    assert (scenario.initial.start, scenario.initial.weight_order) == (Start.FRACTION, WeightOrder.BY_LAYER)
    assert (scenario.initial.omega, scenario.initial.phi) == (Fraction(4, 5), Fraction(1, 3))
    assert (scenario.compute_s, scenario.fixed_s) == (2e-6, 0.5)
    assert (given.placement, given.migration, given.options) == ("prefer-hbm", "alpha", {"target": 0.7})
    assert (given.slack, given.batch, given.trace.sinks) == (True, 3, 1)


def test_a_total_is_split_one_to_two() -> None:
    assert (
        parse(document(w_attn_bytes=None, w_mlp_bytes=None, weights_bytes=240), "x").scenario
        == parse(document(), "x").scenario
    )
    halved = parse(document(w_attn_bytes=None, w_mlp_bytes=None, parameters=7.5e10, bits_per_weight=4), "x").scenario
    assert halved.weights_bytes == 37_500_000_000
    assert halved.attn_bytes == 37_500_000_000 // 6


def test_kv_of_a_token_is_shared_by_the_layers() -> None:
    assert parse(document(kv_bytes=None, kv_token_bytes=10, batch=4), "x").scenario.kv_bytes == 20


def test_omega_that_fits_leaves_room_for_the_prefill_kv() -> None:
    scenario = parse(document(omega="fit"), "x").scenario
    assert scenario.initial.omega == Fraction(345 - 2 * 8 * 10, 240)
    assert scenario.initial.start is Start.HBM
    assert parse(document(omega="fit", hbm_capacity_bytes=10_000), "x").scenario.initial.omega == 1
    assert "the prefill KV alone is 160 bytes" in complaint(omega="fit", hbm_capacity_bytes=100)


def test_phi_makes_the_start_a_fraction() -> None:
    assert parse(document(phi=0.5), "x").scenario.initial.start is Start.FRACTION


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hbm_capacity_bytes": "141G"}, 'hbm_capacity_bytes is "141G": GB or GiB? write 141 GB'),
        ({"hbm_capacity_bytes": "lots"}, "give a size such as"),
        ({"hbm_capacity_bytes": 0}, "hbm_capacity_bytes is 0: give a size"),
        ({"hbm_capacity_bytes": True}, "hbm_capacity_bytes is true: give a size"),
        ({"hbm_capacity_bytes": None}, 'hbm_capacity_bytes is missing: give it (such as "141 GB")'),
        ({"bandwidths": {"hbm": 1}}, "bandwidths.ext_read is missing"),
        (
            {"bandwidths": document()["bandwidths"] | {"hbm": "4915G"}},
            'bandwidths.hbm is "4915G": its unit is not whole',
        ),
        ({"bandwidths": document()["bandwidths"] | {"hbm": "4915 GB"}}, "give bytes per second"),
        ({"bandwidths": document()["bandwidths"] | {"hbm": 1.5}}, "give whole bytes per second"),
        ({"bandwidths": 7}, "give a table [bandwidths] of keys"),
        ({"decode_token": 5}, "decode_token is not known: did you mean decode_tokens?"),
        ({"trace": {"overlapp": 1}}, "trace.overlapp is not known: did you mean overlap?"),
        ({"layers": 0}, "layers is 0: give a whole number above 0"),
        ({"prefill_tokens": -1}, "give a whole number, 0 or above"),
        ({"mode": "both"}, "mode is \"both\": give 'exclusive' or 'inclusive'"),
        ({"omega": 1.2}, "omega is 1.2: give a number from 0 to 1, such as 0.8, or 'fit'"),
        ({"skip_levels": [0.3, 30]}, "skip_levels is [0.3, 30]: give different numbers from 0 to 1"),
        ({"skip": 0.3}, "skip is 0.3: it is for the sets themselves"),
        ({"weights_bytes": 100}, "given in 2 ways"),
        ({"w_mlp_bytes": None}, "w_mlp_bytes is missing"),
        ({"kv_bytes": None}, "KV is given in no way"),
        ({"kv_bytes": None, "kv_token_bytes": 15}, "no whole number of bytes for each of 2 layers"),
        ({"n_decode": 5}, "n_decode and decode_tokens say the same thing"),
        ({"options": {"budget": "much"}}, "options.budget is \"much\": give 'all' or 'slack'"),
        ({"placement": 3}, "placement is 3: give a text in quotes"),
    ],
)
def test_mistakes_are_one_line_that_mends(changes: dict[str, Any], told: str) -> None:
    assert told in complaint(**changes)


def test_skip_sets_are_carried_whole() -> None:
    sets = [[[0], []], [[1, 2], [0]]]
    given = parse(document(prefill_tokens=3, decode_tokens=2, skip=sets, skip_levels=None), "x")
    assert given.skip == (((0,), ()), ((1, 2), (0,)))


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        ([[[0], []]], "skip has 1 steps, but decode_tokens is 2"),
        ([[[0]], [[], []]], "skip[0] has 1 layers of 2"),
        ([[[0], [3]], [[], []]], "skip[0][1] skips token 3, but only 0 to 2 exist then"),
        ([[[0], ["a"]], [[], []]], "skip[0][1] holds what is no token id"),
        ([[0, 1], [[], []]], "skip[0][0] is not a list"),
    ],
)
def test_skip_sets_that_do_not_fit_are_refused(sets: list[Any], told: str) -> None:
    assert told in complaint(prefill_tokens=3, decode_tokens=2, skip=sets, skip_levels=None)


def test_sets_and_levels_exclude_each_other() -> None:
    assert "skip and skip_levels both say" in complaint(decode_tokens=1, skip=[[[], []]])


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.toml", b"layers =", "not TOML"),
        ("a.json", b"{", "not JSON"),
        ("a.json", b"[1]", "not an object of keys"),
        ("a.toml", b"\xff", "not a text in UTF-8"),
    ],
)
def test_files_that_are_no_scenarios(tmp_path: Path, name: str, text: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(UserError, match=told):
        read_document(tmp_path / name)
