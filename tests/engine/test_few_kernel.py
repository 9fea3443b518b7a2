"""Products with packed or 16-bit weights, of few tokens and many, against torch's with the same weights in float32."""

import numpy as np
import pytest
import torch

from penstock.engine.few_kernel import MOST, ROWS, takes_few
from penstock.engine.linear import Widening
from penstock.engine.product_kernel import CHUNK, DEPTH
from penstock.quant.grouped import BITS, GROUPS, Grouped
from penstock.quant.packed import Packed
from penstock.quant.rounding import pack
from penstock.quant.rows import BLOCK

SHAPES = [  # out, in
    (1, 5),
    (ROWS + 1, 64),
    (100, DEPTH + 33),
    (17, 2 * DEPTH),
]
TOKENS = [*range(1, MOST + 2), 33, CHUNK + 5]


def weights(form: Grouped, shape: tuple[int, int]) -> Packed:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return Packed(form, shape[1], torch.from_numpy(pack(values, form)))


@pytest.mark.parametrize("form", [Grouped(bits, group) for bits in BITS for group in GROUPS], ids=lambda f: f.name)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_product_of_unpacked_weights(form, shape):
    packed = weights(form, shape)
    wide = packed.wide(torch.float32)
    widening = Widening(torch.float32, torch.device("cpu"))
    for tokens in TOKENS:
        x = torch.randn(tokens, shape[1], generator=torch.Generator().manual_seed(tokens))
        expected = x.double() @ wide.double().T
        got = widening.linear(x, packed, None)
        assert torch.allclose(got.double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 32), (ROWS + 3, 96), (70, DEPTH + 32), (70, DEPTH + 33)])
def test_few_tokens_with_16_bits(dtype, shape):
    """Rows of whole blocks, and such as are not, which others multiply; all lie apart."""
    weight = torch.randn(shape[0], shape[1] + 7, generator=torch.Generator().manual_seed(0)).to(dtype)[:, : shape[1]]
    for tokens in range(1, MOST + 2):
        x = torch.randn(tokens, shape[1], generator=torch.Generator().manual_seed(tokens))
        expected = x.double() @ weight.double().T
        got = Widening(torch.float32, torch.device("cpu")).linear(x, weight, None)
        assert torch.allclose(got.double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
        assert takes_few(x, weight) == (shape[1] % BLOCK == 0 and tokens <= MOST)


def test_results_may_lie_in_wider_rows():
    packed = weights(Grouped(4), (30, 100))
    widening = Widening(torch.float32, torch.device("cpu"))
    for tokens in (1, MOST, MOST + 1):
        x, out = torch.randn(tokens, 100), torch.zeros(tokens, 50)
        widening.write(x, packed, out[:, 10:40])
        assert torch.allclose(out[:, 10:40], x @ packed.wide(torch.float32).T, rtol=1e-4, atol=1e-3)
        assert not out[:, :10].any()
        assert not out[:, 40:].any()


def test_bfloat16_computes_by_panels():
    packed = weights(Grouped(8), (30, 100))
    x = torch.randn(5, 100).bfloat16()
    got = Widening(torch.bfloat16, torch.device("cpu")).linear(x, packed, None)
    assert torch.allclose(got.float(), x.float() @ packed.wide(torch.float32).T, rtol=2e-2, atol=0.2)
