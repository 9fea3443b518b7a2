from penstock.profiling.place import Place
from penstock.profiling.products import measure_products, product_curve


def test_a_curve_for_each_arithmetic_by_tokens(place: Place) -> None:
    kinds = place.arithmetics(short=True)
    measure_products(place, kinds, (1, 8), 0.0, width=64)  # kernels are compiled, or read from the disk
    curves = measure_products(place, kinds, (1, 8, 64), 0.6, width=128)
    assert list(curves) == ["float32<bfloat16", "float32<float16", "float32"]
    for curve in curves.values():
        assert [size for size, _ in curve.points] == [1, 8, 64]
        assert all(1e5 < rate < 1e14 for _, rate in curve.points)


def test_a_size_that_would_take_longer_than_all_is_left_out(place: Place) -> None:
    curve = product_curve(place, place.arithmetics()[0], (4, 1 << 40), 0.01, width=64)
    assert [size for size, _ in curve.points] == [4]
