"""Kernels are compiled before a run is planned and timed."""

import sys

import pytest
import torch
from numba.core import event
from tests.model.quantized_files import write_fp8
from tests.model.test_stored import MOE, build
from tests.parity import families
from transformers import AutoModelForCausalLM, LlamaConfig

from penstock import LLM, SamplingParams
from penstock.engine.linear import Widening
from penstock.engine.warming import warm_attention, warm_pages
from penstock.memory.kv_form import KVForm, KVLayer
from penstock.model.pages import Page, Slice
from penstock.placing import Placing
from penstock.quant.fp8 import Fp8
from penstock.quant.grouped import Grouped
from penstock.quant.packed import Packed
from penstock.quant.rearranging import pack_fp8

FORM = Grouped(4, 32)
CPU = torch.device("cpu")


class Compiling(event.Listener):
    """Names of the kernels that are compiled from here on."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_start(self, begun: event.Event) -> None:
        self.names.append(begun.data["dispatcher"].py_func.__name__)

    def on_end(self, done: event.Event) -> None:
        """What is begun was counted."""


@pytest.fixture
def compiling(monkeypatch, tmp_path):
    """What is compiled in a process that compiled nothing yet, where nothing was kept on the disk."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    for name, module in list(sys.modules.items()):
        if name.startswith("penstock.") and "compiled" in vars(module):
            for cached in [made for made in vars(module).values() if hasattr(made, "cache_clear")]:
                cached.cache_clear()
    listener = Compiling()
    with event.install_listener("numba:compile", listener):
        yield listener.names


def page(kind: str, form: Grouped | Fp8 = FORM) -> Page:
    nbytes = form.row_bytes(32)
    return Page(0, "page", kind, 0, (Slice("weight", 0, 1, (1, 32), form.name, 0, nbytes),), nbytes, None)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_products_of_any_size_find_their_kernels(compute, compiling):
    warm_pages([page("layer")], compute, CPU)
    assert compiling
    compiling.clear()
    weight = Packed(FORM, 96, torch.zeros(50, FORM.row_bytes(96), dtype=torch.uint8))
    for tokens in (1, 3, 7, 20, 33, 100):
        Widening(compute, CPU).linear(torch.zeros(tokens, 96, dtype=compute), weight, None)
    assert not compiling


def test_tables_of_rows_need_no_products_and_other_devices_nothing(compiling):
    warm_pages([page("layer")], torch.float32, torch.device("meta"))
    assert not compiling
    warm_pages([page("embedding")], torch.float32, CPU)
    assert "_unpack" in compiling
    assert not [name for name in compiling if "multiply" in name]


def test_pages_that_no_file_holds_are_put_together_by_kernels(compiling):
    warm_pages([page("layer", Fp8())], torch.float32, torch.device("meta"))
    assert "_put_fp8" in compiling
    compiling.clear()
    pack_fp8(torch.zeros(3, 300, dtype=torch.uint8).numpy(), torch.ones(3, 3).numpy())
    assert not compiling


def test_keys_that_are_transformed_meet_no_kernel(compiling):
    warm_attention(KVLayer(1, 24, 1, 16), 4, KVForm(torch.float32, 16), torch.float32, decodes=False)
    assert "_scatter" in compiling
    assert "_decode" not in compiling


@pytest.mark.parametrize(
    ("stored", "how"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {"device": "emulated", "attention": "cpu", "kv": "cpu=100%"}),
        (torch.bfloat16, {"weight_bits": 4, "lm_head_bits": 8, "kv_bits": 4}),
        ("fp8", {"disk_memory": 1000}),
    ],
)
def test_nothing_is_compiled_after_the_plan(stored, how, compiling, monkeypatch, tmp_path):
    path = tmp_path / "model"
    if stored == "fp8":
        write_fp8(build(MOE), path)
    else:
        config = LlamaConfig(**{**families.GQA, "max_position_embeddings": 256, "tie_word_embeddings": True})
        AutoModelForCausalLM.from_config(config, dtype=stored).save_pretrained(path)
    choose = Placing.choose

    def planned(*job):
        placement = choose(*job)
        assert "_decode" in compiling
        compiling.clear()
        return placement

    monkeypatch.setattr(Placing, "choose", planned)
    prompts = [{"prompt_token_ids": [token % 40 + 1 for token in range(length)]} for length in (4, 130, 70)]
    with LLM(str(path), unchecked=True, page_bytes=20_000, **how) as llm:
        llm.generate(prompts, SamplingParams(max_tokens=70, temperature=0, ignore_eos=True))
    assert not compiling
