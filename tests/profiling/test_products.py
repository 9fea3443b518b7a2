import pytest
import torch

from penstock.engine.linear import Widening
from penstock.machine.machine import Curve
from penstock.profiling.place import Place
from penstock.profiling.products import measure_products, measure_starts, product_curve


def test_a_curve_for_each_arithmetic_by_tokens(place: Place) -> None:
    kinds = place.arithmetics(short=True)
    measure_products(place, kinds, (8,), 0.0, width=64)  # kernels are compiled, or read from the disk
    curves = measure_products(place, kinds, (1, 8, 64), 0.6, width=128)
    assert list(curves) == ["float32<bfloat16", "float32<float16", "float32"]
    for curve in curves.values():
        assert [size for size, _ in curve.points] == [1, 8, 64]
        assert all(1e5 < rate < 1e14 for _, rate in curve.points)


def test_what_a_small_product_takes_besides(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = place.arithmetics(short=True)[:1]
    large = {kinds[0].name: Curve.flat(2e12)}
    # 2 x 8 x 512 x 512 FLOP are 4.2 MFLOP: 2.1 us at that rate, and 16.8 us of 64 tokens
    monkeypatch.setattr("penstock.profiling.products.median_s", lambda work, budget_s: 50e-6)
    assert measure_starts(place, kinds, large, 0.01) == {kinds[0].name: pytest.approx(40.56e-6, rel=1e-3)}
    monkeypatch.setattr("penstock.profiling.products.median_s", lambda work, budget_s: 1e-6)
    assert measure_starts(place, kinds, large, 0.01) == {kinds[0].name: 0.0}


def test_a_size_that_would_take_longer_than_all_is_left_out(place: Place) -> None:
    curve = product_curve(place, place.arithmetics()[0], (4, 1 << 40), 0.01, width=64)
    assert [size for size, _ in curve.points] == [4]


def test_a_size_that_would_take_much_longer_than_its_part_meets_fewer_outputs(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs: dict[int, int] = {}
    linear = Widening.linear

    def seen(self: Widening, x: torch.Tensor, weight: torch.Tensor, bias: None) -> torch.Tensor:
        outputs[x.shape[1]] = weight.shape[0]
        return linear(self, x, weight, bias)

    monkeypatch.setattr(Widening, "linear", seen)
    monkeypatch.setattr("penstock.profiling.products.median_s", lambda work, budget_s: (work(), 1e-3)[1])
    # of 8 tokens at the rate of the first, a product takes 2 ms: more than thrice the half of 1.2 ms, not of 5 ms
    product_curve(place, place.arithmetics()[2], (4, 8), 5e-3, width=1024)
    assert outputs == {4: 1024, 8: 1024}
    curve = product_curve(place, place.arithmetics()[2], (4, 8), 1.2e-3, width=1024)
    assert outputs == {4: 1024, 8: 512}
    assert curve.points[1][1] == curve.points[0][1]  # half of the outputs of twice the tokens
