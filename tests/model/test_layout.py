"""Pages hold every matrix once, in order, where direct reads can put them; and their extents are its bytes."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

from penstock.engine.anatomy import dissect
from penstock.memory.buffers import aligned_buffer, view
from penstock.memory.direct import DirectReader
from penstock.model.conversion import plan_parameters
from penstock.model.layout import lay_out
from penstock.model.pages import SECTOR
from penstock.model.safetensors_index import SafetensorsIndex
from penstock.model.skeleton import build_skeleton
from penstock.model.stored import stored_sources

SMALL = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "vocab_size": 300,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, tie_word_embeddings=False),
    "tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "moe": Qwen3MoeConfig(**SMALL, moe_intermediate_size=32, num_experts=8, num_experts_per_tok=2, head_dim=16),
}
PAGE_BYTES = 20_000


@pytest.fixture(scope="module", params=CONFIGS)
def laid_out(request, tmp_path_factory):
    torch.manual_seed(0)
    config = CONFIGS[request.param]
    path = tmp_path_factory.mktemp(request.param)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(path)
    skeleton = build_skeleton(config, torch.float32)
    sources = plan_parameters(skeleton, stored_sources(SafetensorsIndex(path).tensors))
    leaves = dissect(skeleton, config).leaves
    layout = lay_out(skeleton, leaves, sources, torch.bfloat16, torch.float32, page_bytes=PAGE_BYTES, core_bytes=100)
    return skeleton, sources, layout


def test_every_row_of_every_matrix_is_in_one_page_or_the_core(laid_out):
    skeleton, sources, layout = laid_out
    rows = Counter()
    for page in layout.pages:
        for part in page.slices:
            rows.update((part.param, row) for row in range(part.start, part.stop))
    assert set(rows.values()) == {1}
    paged = {param for param, _ in rows}
    assert {param: sum(p == param for p, _ in rows) for param in paged} == {p: sources[p].shape[0] for p in paged}
    names = {name for param in paged for name in layout.names[param]}
    every = {name for name, _ in skeleton.named_parameters(remove_duplicate=False)}
    assert names | set(layout.core) == every
    assert not names & set(layout.core)
    assert all(sources[name].shape[1:] == () for name in layout.core)


def test_pages_stay_within_their_size_and_their_slices_apart(laid_out):
    for page in laid_out[2].pages:
        taken = sorted((part.offset, part.offset + part.nbytes) for part in page.slices)
        assert all(stop <= start for (_, stop), (start, _) in pairwise(taken))
        assert taken[-1][1] <= page.nbytes < PAGE_BYTES + (len(taken) + 1) * SECTOR
        assert page.nbytes % SECTOR == 0


def test_first_runs_agree_with_their_files_modulo_a_sector(laid_out):
    for page in laid_out[2].pages:
        starts = {part.offset for part in page.slices}
        assert all((e.at - e.offset) % SECTOR == 0 for e in page.extents if e.at in starts)


def test_what_the_extents_bring_is_the_parameter(laid_out):
    _, sources, layout = laid_out
    reader = DirectReader(threads=2)
    try:
        for page in layout.pages:
            buffer = aligned_buffer(page.nbytes)
            reader.read(page.extents, buffer)
            for part in page.slices:
                assert torch.equal(view(buffer, part), sources[part.param].load(part.start, part.stop))
    finally:
        reader.close()


def test_layers_come_in_order_and_embeddings_last(laid_out):
    pages = laid_out[2].pages
    assert [page.index for page in pages] == list(range(len(pages)))
    layers = [page.layer for page in pages if page.layer is not None]
    assert layers == sorted(layers)
    kinds = [page.kind for page in pages]
    assert "embedding" not in kinds[: kinds.index("head")]
    assert set(kinds[kinds.index("head") :]) <= {"head", "embedding"}
