"""The comparison of paging ways against numbers worked out by hand."""

from dataclasses import replace

import pytest

from penstock.errors import UserError
from penstock.machine.machine import Curve, Link, Machine, Processor
from penstock.plan.paged import decode_s, paged
from penstock.plan.paging import Paged, Scheme, Way, compare, first_transfer_s, layers_held, rows_held
from penstock.plan.shape import AttentionShape, ModelShape, PageShape
from penstock.plan.types import Footprint

MB = 10**6
# 7B on PCIe 3.0: 32 layers of 500 MB and 50 MB of KV, 12 GB/s, 30 ms for a token with everything on the gpu
SEVEN = Paged(
    layers=32,
    layer_bytes=500 * MB,
    row_bytes=50 * MB,
    new_bytes=MB // 10,
    rest_bytes=0,
    hidden_bytes=8192,
    weight_bits=16,
    fast="gpu",
    slow="cpu",
    memory={"gpu": 8_000 * MB, "cpu": 64_000 * MB},
    inward=Link(12e9),
    outward=Link(12e9),
    speed=Curve.flat(1 / 0.030),
    slow_speed=Curve.flat(1 / 0.300),
    dequantise_per_s=1e12,
)


def way(name: str, model: Paged = SEVEN, rows: int | None = None) -> Way:
    return next(way for way in compare(model, rows) if way.name.startswith(name))


def test_the_first_form_moves_all_twice_for_every_token() -> None:
    assert first_transfer_s(SEVEN, 32) == pytest.approx(550 * 2 * 32 / 12000)  # 2.93 s
    assert way("one layer").first_s == pytest.approx(2.933 + 0.030, abs=1e-3)
    assert first_transfer_s(SEVEN, 32) / 0.030 == pytest.approx(97.8, abs=0.1)


def test_weights_are_not_written_back() -> None:
    one = way("one layer")
    assert one.sweep_s == pytest.approx(0.030 + 32 * 550 / 12000 + 32 * 0.1 / 12000)  # 1.497 s, half of the first form
    assert one.slowdown == pytest.approx(49.9, abs=0.1)
    assert one.memory == {"gpu": 550 * MB, "cpu": 32 * 550 * MB}
    assert one.break_even_rows is None  # KV takes longer to come than a row to compute


def test_resident_does_not_fit_and_is_what_others_are_measured_by() -> None:
    resident = way("resident")
    assert (resident.sweep_s, resident.slowdown, resident.break_even_rows) == (0.030, 1.0, 0)
    assert resident.memory["gpu"] == 17_600 * MB
    assert not resident.fits


def test_static_split_computes_where_layers_lie() -> None:
    assert layers_held(SEVEN) == 14  # 8,000 of 550 MB
    split = way("static split")
    assert split.name == "static split 14/32"
    assert split.sweep_s == pytest.approx(14 / 32 * 0.030 + 18 / 32 * 0.300 + 8192 / 12e9)
    assert split.fits


def test_nothing_computes_on_disk() -> None:
    split = way("static split", replace(SEVEN, slow_speed=None))
    assert split.sweep_s is split.tok_s is split.slowdown is None
    assert split.remark == "nothing computes on cpu"


def test_a_ring_moves_as_many_bytes_and_saves_latencies_only() -> None:
    slow_start = replace(SEVEN, inward=Link(12e9, 0.001), outward=Link(12e9, 0.001))
    one, ring = way("one layer", slow_start), way("ring", slow_start)
    assert one.sweep_s is not None and ring.sweep_s is not None and one.first_s is not None
    assert one.sweep_s - ring.sweep_s == pytest.approx(2 * (32 - 8) * 0.001)
    assert ring.first_s == pytest.approx(0.030 + 2.9333 / 4, abs=1e-3)  # the fourfold gain that was hoped for
    assert ring.memory["gpu"] == 4 * 550 * MB


def test_double_buffering_hides_the_shorter_one() -> None:
    assert way("double").sweep_s == pytest.approx(32 * 550 / 12000)
    quick = replace(SEVEN, inward=Link(1e15), outward=Link(1e15))
    assert way("double", quick).sweep_s == pytest.approx(0.030)
    assert way("double", quick).break_even_rows == 1


def test_hot_layers_do_not_move() -> None:
    hot = way("13 hot layers")
    assert hot.sweep_s == pytest.approx(0.030 + 19 * 550.1 / 12000)
    assert hot.memory == {"gpu": 14 * 550 * MB, "cpu": 19 * 550 * MB}


def test_where_all_layers_fit_all_are_hot() -> None:
    roomy = replace(SEVEN, memory={"gpu": 64_000 * MB, "cpu": 64_000 * MB})
    hot = way("32 hot layers", roomy)
    assert (hot.sweep_s, hot.memory["cpu"], hot.break_even_rows) == (0.030, 0, 0)


def test_four_bits_with_their_scales_are_a_quarter_and_more() -> None:
    four = way("4-bit")
    unpacking = 32 * 250 * MB / 1e12
    assert four.sweep_s == pytest.approx(0.030 + unpacking + 32 * (500 * 4.5 / 16 + 50.1) / 12000)
    assert four.first_s == pytest.approx(0.030 + 2 * 32 * (62.5 + 50) / 12000)
    assert way("8-bit", replace(SEVEN, weight_bits=8)).memory["cpu"] == way("one layer").memory["cpu"]


def test_rows_share_a_sweep() -> None:
    many = way("the same, KV on gpu", rows=44)
    # 44 rows compute for 1.32 s beside 1.33 s of weights
    assert many.sweep_s == pytest.approx(16_000 / 12_000)
    assert many.tok_s == pytest.approx(44 / 1.3333, rel=1e-3)
    assert many.break_even_rows == 45
    assert many.slowdown == pytest.approx(1.3333 / 1.32, rel=1e-3)
    assert way("sweeps of 44", rows=44).sweep_s == pytest.approx(32 * (500 + 44 * 50) / 12_000)


def test_break_even_is_the_least_number_of_rows() -> None:
    scheme = Scheme(32, slots=2, kv_moves=False, overlapped=True)
    even = scheme.break_even_rows(SEVEN)
    assert even is not None
    assert scheme.compute_s(SEVEN, even) >= scheme.transfer_s(SEVEN, even)
    assert scheme.compute_s(SEVEN, even - 1) < scheme.transfer_s(SEVEN, even - 1)


def test_rows_that_the_fast_tier_holds() -> None:
    assert rows_held(SEVEN) == (8_000 - 1_000) // (32 * 50)
    assert rows_held(replace(SEVEN, memory={"gpu": MB, "cpu": MB})) == 1


def shape() -> ModelShape:
    page = PageShape(nbytes=2000, weights=1000, layer=0)
    head = PageShape(nbytes=400, weights=200, layer=None, samples_only=True)
    table = PageShape(nbytes=400, weights=0, layer=None, table=True)
    attention = [AttentionShape(kv_bytes=8, pair_flops=16, window=w, page=p) for w, p in ((None, 1), (10, 2))]
    footprint = Footprint(pages=(400, 2000, 2000, 400), tables=frozenset({0}), core=64, call_bytes=1, logit_bytes=4,
                          kv_block=256, block_tokens=16)  # fmt: skip
    pages = (table, page, replace(page, layer=1), head)
    return ModelShape("tiny", "bfloat16", pages, attention, 32, 100, 50, footprint)


PROCESSOR = Processor({"bfloat16": Curve.flat(1e6)}, Curve.flat(1e6), kv_bytes_per_s=1e6, activation_bytes_per_s=1e6)
LINK = Link(1e6)


def test_a_shape_on_a_machine() -> None:
    machine = Machine("m", {"cpu": 9000, "disk": 10**6}, {"disk→cpu": LINK, "cpu→disk": LINK}, {"cpu": PROCESSOR})
    model = paged(shape(), machine, context=20, budgets={"cpu": None, "disk": 5})  # layers lie in the checkpoint
    assert (model.layers, model.layer_bytes, model.rest_bytes) == (2, 2000, 464)
    assert (model.row_bytes, model.new_bytes) == ((8 * 20 + 8 * 10) // 2, 8)
    assert (model.fast, model.slow, model.memory) == ("cpu", "disk", {"cpu": 9000, "disk": 10**6})
    assert model.slow_speed is None
    assert paged(shape(), machine, 20, {"cpu": 0}).memory["cpu"] == 0
    products, attention, traffic = 2 * 2200 / 1e6, 16 * 30 / 1e6, 100 / 1e6
    assert model.compute_s(1) == pytest.approx(products + attention + traffic)


def test_experts_that_a_token_is_not_sent_to_compute_nothing() -> None:
    plain = shape()
    experts = tuple(replace(p, experts=8) if p.layer is not None else p for p in plain.pages)
    routed = replace(plain, pages=experts, experts=8, experts_chosen=2)
    processor = replace(PROCESSOR, activation_bytes_per_s=1e30)  # to experts and back costs nothing
    saved = decode_s(plain, processor, 20, 4) - decode_s(routed, processor, 20, 4)
    assert saved == pytest.approx(4 * 2 * 2000 * (6 / 8) / 1e6)


def test_a_machine_without_the_way_back_is_told_so() -> None:
    machine = Machine("m", {"cpu": 9000}, {"disk→cpu": LINK}, {"cpu": PROCESSOR})
    with pytest.raises(UserError, match="machine m has no link cpu→disk"):
        paged(shape(), machine, 20, {})
