"""GGUF files of mixed blocks, as people download them: run packed, they answer what transformers does with the values.

They are made as llama.cpp makes Q4_K_M and its like: most matrices in one kind of superblock, some in a better one.
"""

from functools import cache

import pytest
import torch
from tests.model.gguf_files import llama_shapes, write
from tests.parity.conftest import LENGTHS, NEW_TOKENS
from tests.parity.harness import PAGE_BYTES, run
from tests.parity.reference import generate
from tests.parity.test_matrix import LANES, MARKED, PLACEMENTS, SHAPE
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3MoeConfig

from penstock.engine.build import blueprint
from penstock.memory.buffers import view
from penstock.model import gguf, precision, source
from penstock.model.page_cache import fill
from penstock.quant.packed import Packed

WIDTHS = {
    "vocab_size": 100,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 64,
}
EXPERTS, WIDTH = 6, 768  # the width that transformers takes for granted in such files


def kind_of_mxfp4(name: str) -> str:
    """MXFP4_MOE: experts in blocks of MXFP4, everything else in 8 bits."""
    return "F32" if "ffn_gate_inp" in name else "MXFP4" if "_exps" in name else "Q8_0"


def kind_of(name: str) -> str:
    """Q4_K_M, with fifths and 8 bits among it."""
    better = {"attn_v": "Q6_K", "ffn_down": "Q6_K", "blk.1.attn_output": "Q5_K", "blk.0.attn_k": "Q8_0"}
    kinds = {**better, "ffn_gate_inp": "F32", "token_embd": "Q6_K", "output.weight": "Q6_K"}
    return next((kind for part, kind in kinds.items() if part in name), "Q4_K")


def shapes_of(family: str) -> tuple[str, PreTrainedConfig, dict[str, tuple[int, ...]]]:
    shapes = llama_shapes(256, 512, 100)
    if family == "tied":
        del shapes["output.weight"]
    if family not in ("experts", "mxfp4"):
        return "llama", LlamaConfig(**WIDTHS, tie_word_embeddings=family == "tied"), shapes
    shapes = {name: shape for name, shape in shapes.items() if ".ffn_" not in name or "norm" in name}
    for layer in ("blk.0", "blk.1"):
        shapes |= {f"{layer}.attn_{side}_norm.weight": (64,) for side in "qk"}
        shapes |= {
            f"{layer}.ffn_gate_inp.weight": (EXPERTS, 256),
            f"{layer}.ffn_gate_exps.weight": (EXPERTS, WIDTH, 256),
            f"{layer}.ffn_up_exps.weight": (EXPERTS, WIDTH, 256),
            f"{layer}.ffn_down_exps.weight": (EXPERTS, 256, WIDTH),
        }
    routed = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": WIDTH}
    return "qwen3moe", Qwen3MoeConfig(**WIDTHS, **routed, tie_word_embeddings=False), shapes


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """A family's file, prompts, and transformers' answers with the values of its blocks."""

    @cache
    def made(family):
        architecture, config, shapes = shapes_of(family)
        kinds = kind_of_mxfp4 if family == "mxfp4" else kind_of
        path = write(tmp_path_factory.mktemp("gguf") / f"{family}.gguf", architecture, config, shapes, kinds, 0.08)
        found = source.resolve(str(path))
        model = AutoModelForCausalLM.from_config(found.config, dtype=torch.float32).eval()
        parameters = gguf.plan_parameters(model, gguf.read_header(path))
        model.load_state_dict({name: parameter.load() for name, parameter in parameters.items()})
        draw = torch.Generator().manual_seed(1)
        prompts = [torch.randint(3, 100, (n,), generator=draw).tolist() for n in LENGTHS]
        return path, prompts, [generate(model, prompt, NEW_TOKENS) for prompt in prompts]

    return made


each_family = pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=pytest.mark.xdist_group(f"gguf-{f}")) for f in ("llama", "tied", "experts", "mxfp4")],
)


@each_family
def test_all_matrices_of_pages_run_as_they_are_stored(subject, family):
    found = source.resolve(str(subject(family)[0]))
    chosen = precision.choose("float32", None, "cpu", False, packed_in=("float32",))
    pieces = [piece for page in blueprint(found, chosen, page_bytes=PAGE_BYTES).layout.pages for piece in page.slices]
    kinds = {"mxfp4", "q8_0"} if family == "mxfp4" else {"q4_k", "q5_k", "q6_k", "q8_0"}
    assert {piece.dtype for piece in pieces} == kinds
    assert {piece.dtype for piece in pieces if ".experts." in piece.param} <= {"mxfp4", "q4_k", "q6_k"}
    assert {piece.dtype for piece in pieces if piece.param == "lm_head.weight"} == {min(kinds & {"q6_k", "q8_0"})}


@each_family
def test_unpacked_to_bfloat16_they_are_what_conversion_gives(subject, family):
    found = source.resolve(str(subject(family)[0]))
    assert "bfloat16" in found.packed_in("cpu")

    def weights(asked: str) -> dict[str, torch.Tensor]:
        chosen = precision.choose(asked, None, "cpu", True, packed_in=found.packed_in("cpu"))
        plan = blueprint(found, chosen, page_bytes=PAGE_BYTES)
        parts: dict[str, dict[int, torch.Tensor]] = {}
        for page in plan.layout.pages:
            buffer = torch.zeros(page.nbytes, dtype=torch.uint8)
            fill(plan.sources, page, buffer)
            for piece in page.slices:
                part = view(buffer, piece)
                assert isinstance(part, Packed) == (asked == "auto")
                wide = part.wide(torch.bfloat16) if isinstance(part, Packed) else part
                parts.setdefault(piece.param, {})[piece.start] = wide
        return {name: torch.cat([rows[start] for start in sorted(rows)]) for name, rows in parts.items()}

    packed, converted = weights("auto"), weights("bfloat16/bfloat16/bfloat16")  # the latter names nothing to pack
    assert packed.keys() == converted.keys()
    assert all(torch.equal(packed[name], converted[name]) for name in packed)


@pytest.mark.parametrize("placement", MARKED)
@each_family
def test_tokens_are_those_of_the_blocks_values(subject, compare, family, placement):
    path, prompts, answers = subject(family)
    tokens, trail = run(path, prompts, NEW_TOKENS, dtype="float32", **SHAPE, **PLACEMENTS[placement])
    compare(answers, tokens, trail.logits)
    assert all(trail.moved[lane] for lane in LANES.get(placement, ()))
