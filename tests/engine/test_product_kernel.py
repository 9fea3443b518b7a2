"""Products with 16-bit weights, widened inside the kernel, against torch's with the same weights in float32."""

import pytest
import torch

from penstock.compiled import pairs
from penstock.engine.linear import Widening
from penstock.engine.product_kernel import CHUNK, DEPTH, FEWEST, ROWS, TILE_TOKENS, Multiplier

SHAPES = [  # tokens, out, in
    (FEWEST, 5, 7),
    (TILE_TOKENS, ROWS, DEPTH),
    (TILE_TOKENS // 2 + 1, 8 * ROWS + 1, DEPTH + 1),
    (CHUNK + 33, 100, 2 * DEPTH + 5),
    (CHUNK, 16 * ROWS, 64),
]


def close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(got, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_product_of_widened_weights(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    tokens, out_features, in_features = shape
    torch.manual_seed(0)
    x, weight = torch.randn(tokens, in_features), torch.randn(out_features, in_features).to(dtype)
    out = torch.full((tokens, out_features), float("nan"))
    Multiplier(torch.empty(1 << 18).fill_(float("nan"))).multiply(x, weight, out)
    assert close(out, x @ weight.float().T)


def test_a_token_gives_the_same_alone_and_among_others() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(CHUNK + 40, 500), torch.randn(70, 500).bfloat16()
    widening = Widening(torch.float32, torch.device("cpu"))
    together = widening.linear(x, weight, None)
    assert torch.equal(widening.linear(x[100:105], weight, None), together[100:105])


def test_packed_activations_are_taken_again_only_where_they_are_the_same() -> None:
    torch.manual_seed(0)
    widening = Widening(torch.float32, torch.device("cpu"))
    wide, weights = torch.randn(40, 8, 64), [torch.randn(30, 64).bfloat16() for _ in range(3)]
    for few in (slice(0, 40), slice(0, FEWEST - 1)):  # by the kernel, or by panels that use the same scratch
        x, other = wide[:, 0].contiguous(), wide[few, 1].contiguous()
        out = torch.empty(40, 90)
        widening.write(x, weights[0], out[:, :30])
        widening.write(x, weights[1], out[:, 30:60])
        widening.linear(other, weights[0], None)
        widening.write(x, weights[2], out[:, 60:])
        assert close(out, x @ torch.cat(weights).float().T)


def test_more_tokens_than_the_scratch_holds() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5 * TILE_TOKENS + 3, 100), torch.randn(60, 100).bfloat16()
    multiplier = Multiplier(torch.empty(2 * TILE_TOKENS * 100))
    for _ in range(2):
        out = torch.empty(len(x), 60)
        multiplier.multiply(x, weight, out)
        assert close(out, x @ weight.float().T)


def test_rows_may_lie_apart_and_results_in_wider_rows() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(20, 100), torch.randn(60, 130).bfloat16()[:, 10:110]
    out = torch.zeros(20, 90)
    Multiplier(torch.empty(1 << 16)).multiply(x, weight, out[:, 15:75])
    assert close(out[:, 15:75], x @ weight.float().T)
    assert not out[:, :15].any()
    assert not out[:, 75:].any()


def test_what_cannot_be_multiplied_is_not_taken() -> None:
    multiplier = Multiplier(torch.empty(64 * TILE_TOKENS))
    x, weight = torch.randn(FEWEST, 64), torch.randn(8, 64).bfloat16()
    assert multiplier.takes(x, weight)
    assert multiplier.takes(x[:1], weight)
    assert not multiplier.takes(x[:1, 1:], weight[:, 1:]), "few tokens, and rows of no whole blocks"
    assert multiplier.takes(x.bfloat16(), weight) == pairs.HERE
    assert not multiplier.takes(x.half(), weight.half()), "torch multiplies these"
    assert not multiplier.takes(x, weight.float())
    assert not multiplier.takes(torch.randn(FEWEST, 8), weight.T)
    assert not multiplier.takes(torch.randn(FEWEST, 65), torch.randn(8, 65).bfloat16())


def test_a_nan_stays_in_its_own_results() -> None:
    x, weight = torch.ones(FEWEST, 20), torch.ones(ROWS + 1, 20).bfloat16()
    x[1, 3], weight[2, 5] = float("nan"), float("inf")
    out = torch.empty(FEWEST, ROWS + 1)
    Multiplier(torch.empty(1 << 14)).multiply(x, weight, out)
    assert out[1].isnan().all()
    assert out[0, 2].isinf()
    assert out[0, [0, 1, *range(3, ROWS + 1)]].eq(20).all()
