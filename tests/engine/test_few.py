"""Products with packed or 16-bit weights, of few tokens and many, against torch's with the same weights in float32."""

import numpy as np
import pytest
import torch

from penstock.compiled import pairs
from penstock.engine.few import MOST, MOST_PAIRS, STEP, multiply_few, takes_few
from penstock.engine.few_kernel import ROWS
from penstock.engine.linear import Widening
from penstock.engine.pair_kernel import BAND, DEEP
from penstock.engine.product_kernel import CHUNK, DEPTH
from penstock.quant.ggml import Ggml
from penstock.quant.grouped import BITS, GROUPS, Grouped
from penstock.quant.mxfp4 import Mxfp4
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


def in_bfloat16(form, rows: int, columns: int) -> torch.Tensor | Packed:
    """Weights of any format, elements of some size: bytes are drawn, and their scales are put right."""
    if form is None:
        return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).bfloat16()
    if isinstance(form, Grouped):
        return weights(form, (rows, columns))
    codes = torch.randint(0, 256, (rows, form.row_bytes(columns)), dtype=torch.uint8)
    scales = codes.view(rows, -1, form.record_bytes)
    if form.name == "mxfp4":
        scales[..., 0] = torch.randint(120, 128, scales.shape[:-1])
    else:
        halves = torch.randn(*scales.shape[:-1], 2).half().view(torch.uint8)
        scales[..., : form.record_bytes - 16] = halves[..., : form.record_bytes - 16]
    return Packed(form, columns, codes)


PAIRED = [None, *(Grouped(4, group) for group in GROUPS), Ggml("q4_0"), Ggml("q4_1"), Mxfp4()]


@pytest.mark.parametrize("form", [*PAIRED, Grouped(8)], ids=lambda form: form.name if form else "bfloat16")
@pytest.mark.parametrize("shape", [(1, 32), (STEP + 1, 96), (100, DEPTH + 32), (30, 2 * DEPTH)])
def test_bfloat16_activations(form, shape):
    """Pairs where the CPU multiplies them, float32 otherwise; results are rounded once."""
    weight = in_bfloat16(form, *shape)
    wide = (weight.wide(torch.float32) if isinstance(weight, Packed) else weight.float()).double()
    widening = Widening(torch.bfloat16, torch.device("cpu"))
    for tokens in [*range(MOST + 2), MOST_PAIRS, MOST_PAIRS + 1]:
        x = torch.randn(tokens, shape[1], generator=torch.Generator().manual_seed(tokens)).bfloat16()
        got = widening.linear(x, weight, None)
        assert got.dtype == torch.bfloat16
        expected = x.double() @ wide.T
        size = wide.square().sum(1).sqrt()  # of what is summed
        assert ((got.double() - expected).abs() <= 0.01 * expected.abs() + 0.02 * size).all()


@pytest.mark.parametrize("form", PAIRED, ids=lambda form: form.name if form else "bfloat16")
@pytest.mark.parametrize("columns", [32, 96, DEPTH, DEEP // 8 + 96, DEEP + 32])
def test_sums_of_pairs_are_as_exact_as_float32(form, columns):
    if not pairs.HERE:
        pytest.skip("this CPU does not multiply pairs of bfloat16")
    rows = 2 * BAND + 19
    weight = in_bfloat16(form, rows, columns)
    wide = (weight.wide(torch.float32) if isinstance(weight, Packed) else weight.float()).double()
    for tokens in (1, 3, 4, 7, MOST_PAIRS):
        x, out = torch.randn(tokens, columns).bfloat16(), torch.zeros(tokens, rows)
        assert takes_few(x, weight)
        multiply_few(x, weight, out)
        expected = x.double() @ wide.T
        assert torch.allclose(out.double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_bfloat16_of_a_row_that_is_no_whole_blocks():
    packed = weights(Grouped(4), (30, 100))
    x = torch.randn(5, 100).bfloat16()
    got = Widening(torch.bfloat16, torch.device("cpu")).linear(x, packed, None)
    assert torch.allclose(got.float(), x.float() @ packed.wide(torch.float32).T, rtol=2e-2, atol=0.2)
