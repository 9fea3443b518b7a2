import pytest

from penstock.profiling.attention import (
    PLAIN,
    SHARED,
    TYPICAL,
    Decoded,
    decode_rates,
    decode_s,
    measure_attention,
    prefill_flops,
)
from penstock.profiling.place import Place

ITEM = 2


def test_flops_and_bytes_of_heads() -> None:
    assert TYPICAL.pair_flops == 2 * 32 * (128 + 128)
    assert TYPICAL.kv_bytes(2) == 2 * 8 * (128 + 128)


def test_rates_that_explain_decode() -> None:
    """One query head per KV head is held up by bytes at 8 GB/s, eight by arithmetic at 16 GFLOP/s."""
    plain = [Decoded(64, n, 64 * n * PLAIN.kv_bytes(ITEM) / 8e9) for n in (50, 200, 800)]
    shared = [Decoded(64, n, 64 * n * SHARED.pair_flops / 16e9) for n in (50, 200, 800)]
    rates = decode_rates(plain, shared, ITEM, [(256.0, 9e10), (16.0, 3e10)])
    assert rates.kv_bytes_per_s == pytest.approx(8e9)
    assert rates.flops.points == ((1.0, pytest.approx(16e9)), (16.0, 3e10), (256.0, 9e10))
    assert rates.row_s == pytest.approx(0, abs=1e-9)
    for many, heads in ((plain, PLAIN), (shared, SHARED)):
        for d in many:
            keys = d.rows * d.keys
            seconds = max(
                keys * heads.pair_flops / rates.flops.at(1), keys * heads.kv_bytes(ITEM) / rates.kv_bytes_per_s
            )
            assert seconds == pytest.approx(d.seconds)


def test_what_a_row_costs_whatever_its_keys() -> None:
    plain = [Decoded(64, n, 64 * (2e-6 + n * 1e-7)) for n in (50, 200, 800)]
    rates = decode_rates(plain, plain, ITEM, [])
    assert rates.row_s == pytest.approx(2e-6)
    assert rates.kv_bytes_per_s == pytest.approx(PLAIN.kv_bytes(ITEM) / 1e-7)
    assert rates.flops.at(1) == pytest.approx(SHARED.pair_flops / 1e-7)
    flat = [Decoded(64, n, 1e-3) for n in (50, 200)]
    assert 0 < decode_rates(flat, flat, ITEM, []).kv_bytes_per_s < 1e15


def test_what_a_call_takes_is_left_out_as_far_as_that_can_be_told() -> None:
    assert Decoded(64, 50, 1.0).beyond(0.1).seconds == pytest.approx(0.9)
    assert Decoded(64, 50, 1.0).beyond(0.9).seconds == 0.5


def test_the_engine_s_own_attention_is_run(place: Place) -> None:
    rates = measure_attention(place, 0.02, rows=3, keys=(5, 40), spans=(4, 20))
    assert [size for size, _ in rates.flops.points] == [1, 4, 20]
    assert 1e6 < rates.kv_bytes_per_s < 1e13
    assert decode_s(place, PLAIN, 4, 30, 0.0).seconds > 0
    assert prefill_flops(place, PLAIN, 16, 0.0) > 1e5
