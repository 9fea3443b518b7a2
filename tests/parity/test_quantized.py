"""Checkpoints in fp8 and MXFP4: streamed packed, an engine answers what transformers does with them dequantised."""

from functools import cache

import pytest
import torch
from tests.model.quantized_files import BLOCK, dequantized, fp8_of, spread, write_fp8, write_mxfp4
from tests.parity.conftest import LENGTHS, NEW_TOKENS
from tests.parity.families import ALTERNATING, IDS, VOCABULARY
from tests.parity.harness import PAGE_BYTES, run
from tests.parity.reference import generate
from tests.parity.test_matrix import LANES, MARKED, PLACEMENTS, SHAPE
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig, Qwen3MoeConfig

from penstock.engine.build import blueprint
from penstock.model import precision, source
from penstock.model.packing import Packing
from penstock.quant.grouped import Grouped

WIDTHS = {**IDS, "vocab_size": VOCABULARY, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2}
PLAIN = {name: value for name, value in WIDTHS.items() if "experts" not in name}
CHECKPOINTS = {
    # widths that are no multiples of a block
    "fp8-odd": (
        LlamaConfig(num_hidden_layers=2, hidden_size=160, head_dim=40, intermediate_size=200, **PLAIN),
        write_fp8,
    ),
    "fp8": (
        Qwen3MoeConfig(
            num_hidden_layers=2, hidden_size=256, head_dim=64, moe_intermediate_size=128, num_experts=4, **WIDTHS
        ),
        write_fp8,
    ),
    "mxfp4": (
        GptOssConfig(
            **{**WIDTHS, "num_attention_heads": 8},
            num_hidden_layers=2,
            hidden_size=64,
            head_dim=16,
            intermediate_size=96,
            num_local_experts=4,
            sliding_window=8,
            layer_types=ALTERNATING,
        ),
        write_mxfp4,
    ),
}


def rounded(model):
    """The model with its matrices rounded to fp8, by the blocks that it is stored in; transformers divides evenly."""
    for name, matrix in model.named_parameters():
        if "proj" in name:
            codes, scales = fp8_of(matrix.detach(), BLOCK, torch.float32)
            matrix.data = (codes.float() * spread(scales, matrix, BLOCK)).bfloat16()
    return model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A checkpoint, prompts, and transformers' answers by what it makes of it in bfloat16."""

    @cache
    def made(method: str):
        config, write = CHECKPOINTS[method]
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.08)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        path = tmp_path_factory.mktemp("quantized") / method
        write(model, path)
        draw = torch.Generator().manual_seed(1)
        prompts = [torch.randint(3, VOCABULARY, (n,), generator=draw).tolist() for n in LENGTHS]
        whole = (rounded(model) if method == "fp8-odd" else dequantized(path)).float().eval()
        return path, prompts, [generate(whole, prompt, NEW_TOKENS) for prompt in prompts]

    return made


marked = [pytest.param(method, marks=pytest.mark.xdist_group(method)) for method in CHECKPOINTS]
each_method = pytest.mark.parametrize("method", marked)


@pytest.mark.parametrize("placement", MARKED)
@each_method
def test_tokens_are_those_of_transformers(checkpoint, compare, method, placement):
    path, prompts, answers = checkpoint(method)
    tokens, trail = run(path, prompts, NEW_TOKENS, **SHAPE, **PLACEMENTS[placement])
    compare(answers, tokens, trail.logits)
    assert all(trail.moved[lane] for lane in LANES.get(placement, ()))


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_what_is_quantised_streams_so(checkpoint, method):
    """The experts, and in fp8 the matrices of attention too; everything else has 16 bits."""
    path, *_ = checkpoint(method)

    found = source.resolve(str(path))

    def stored(dtype: str, packing: Packing | None = None) -> dict[str, set[str]]:
        chosen = precision.choose(dtype, found.checkpoint_dtype, "cpu", True, packing, found.packed_in)
        kinds: dict[str, set[str]] = {}
        for piece in (s for page in blueprint(found, chosen, page_bytes=PAGE_BYTES).layout.pages for s in page.slices):
            kinds.setdefault(piece.dtype, set()).add(piece.param.split(".")[-2])
        return kinds

    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    for dtype in ("float32", "bfloat16"):
        kinds = stored(dtype)
        assert kinds[method] == {"experts"} | (attention if method == "fp8" else set())
        assert kinds.keys() == {method, "bfloat16"}
    assert stored("float32", Packing()).keys() == {"bfloat16"}, "--weight-bits 16"
    assert stored("float16").keys() == {"float16"}, "which does not hold what they stand for"
    assert stored("float32", Packing(Grouped(4)))["int4g64"] == {"experts"} | attention


@each_method
def test_products_in_bfloat16_are_those_of_weights_in_16_bits(checkpoint, method):
    path, prompts, _ = checkpoint(method)
    dtypes = "bfloat16", "bfloat16/bfloat16/bfloat16"  # the latter packs nothing that it does not name
    (_, packed), (_, wide) = (run(path, prompts, 1, dtype=dtype, **SHAPE) for dtype in dtypes)
    for row, prompt in enumerate(prompts):
        got, expected = (trail.logits[row][len(prompt)].float() for trail in (packed, wide))
        assert (got - expected).abs().max() < 0.01 * expected.abs().max()
