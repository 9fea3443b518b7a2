"""Headers are read, damage is named."""

import json

import pytest
import torch
from safetensors.torch import save_file

from penstock.errors import UserError
from penstock.model.safetensors_index import LONGEST_HEADER, SafetensorsIndex

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b.weight": torch.ones(5, 2, dtype=torch.bfloat16),
    "c.scalar": torch.tensor(7, dtype=torch.int64),
    "d.empty": torch.empty(0, 3, dtype=torch.float16),
}


def single(directory):
    path = directory / "model.safetensors"
    save_file(TENSORS, path)
    return path


def sharded(directory):
    placed = {}
    for number, names in enumerate((["a.weight"], ["b.weight", "c.scalar", "d.empty"]), start=1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: TENSORS[name] for name in names}, directory / shard)
        placed |= dict.fromkeys(names, shard)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return index


def with_header(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("store", [single, sharded])
def test_tensors_lie_where_the_index_says(store, tmp_path):
    store(tmp_path)
    index = SafetensorsIndex(tmp_path)
    assert index.tensors.keys() == TENSORS.keys()
    assert index.total_bytes == 12 * 4 + 10 * 2 + 8
    for name, tensor in TENSORS.items():
        held = index.tensors[name]
        assert (held.shape, held.dtype) == (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        with open(held.path, "rb") as file:
            file.seek(held.offset)
            assert file.read(held.nbytes) == tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_shards_without_an_index_file(tmp_path):
    sharded(tmp_path).unlink()
    assert SafetensorsIndex(tmp_path).tensors.keys() == TENSORS.keys()
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    (tmp_path / "other.safetensors").write_bytes((tmp_path / "model-00002-of-00002.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"2 \.safetensors files but no model\.safetensors\.index\.json"):
        SafetensorsIndex(tmp_path)


@pytest.mark.parametrize("cut_bytes", [1, 20, 60])
def test_truncated_data_says_how_much(cut_bytes, tmp_path):
    sharded(tmp_path)
    path = tmp_path / "model-00001-of-00002.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut_bytes])
    match = (
        r"^model-00001-of-00002\.safetensors is \d+ bytes short: its header promises \d+ bytes\. Download it again\.$"
    )
    with pytest.raises(UserError, match=match) as caught:
        SafetensorsIndex(tmp_path)
    if cut_bytes < 48:
        assert f"is {cut_bytes} bytes short: its header promises {len(whole)} bytes" in str(caught.value)


def test_large_shortfall_is_in_gigabytes(tmp_path):
    entry = {"dtype": "F32", "shape": [300_000_000], "data_offsets": [0, 1_200_000_000]}
    with_header(tmp_path / "model.safetensors", {"a": entry})
    with pytest.raises(UserError, match=r"model\.safetensors is 1\.2 GB short: its header promises 12000000\d\d bytes"):
        SafetensorsIndex(tmp_path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "it has 0 bytes"),
        (b"abc", "it has 3 bytes"),
        ((LONGEST_HEADER + 1).to_bytes(8, "little") + b"{}", "header would be 100000001 bytes long"),
        ((2**63).to_bytes(8, "little"), "header would be 9223372036854775808 bytes long"),
        ((50).to_bytes(8, "little") + b"{}", "48 bytes short"),
        ((4).to_bytes(8, "little") + b"{{{{", "not JSON"),
        ((4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc", "not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "not a table"),
    ],
)
def test_broken_beginnings(content, what, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=what) as caught:
        SafetensorsIndex(tmp_path)
    assert str(caught.value).startswith("model.safetensors ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"dtype": "F32", "shape": [2]}, "entry for a is incomplete"),
        ("text", "entry for a is incomplete"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0]}, "entry for a is incomplete"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "impossible numbers"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, "impossible numbers"),
        ({"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}, "impossible numbers"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, r"shape \[3\] in F32 needs 12 bytes, has 8"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}, "1 bytes short"),
        ({"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}, "stores a as X9, which is not read"),
        ({"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}, "entry for a is incomplete"),
    ],
)
def test_broken_entries(entry, what, tmp_path):
    with_header(tmp_path / "model.safetensors", {"a": entry}, bytes(8))
    with pytest.raises(UserError, match=what):
        SafetensorsIndex(tmp_path)


def test_missing_shard(tmp_path):
    sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"^model-00002-of-00002\.safetensors is missing"):
        SafetensorsIndex(tmp_path)


def test_tensor_absent_from_its_shard(tmp_path):
    index = sharded(tmp_path)
    written = json.loads(index.read_text())
    written["weight_map"]["e.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(written))
    with pytest.raises(
        UserError, match=r"places e\.weight in model-00001-of-00002\.safetensors, which does not hold it"
    ):
        SafetensorsIndex(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../elsewhere"}}'])
def test_broken_index(text, tmp_path):
    sharded(tmp_path).write_text(text)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json (is not an index|names files outside)"):
        SafetensorsIndex(tmp_path)


def test_an_index_that_cannot_be_read(tmp_path):
    index = sharded(tmp_path)
    index.unlink()
    index.mkdir()
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json cannot be read: Is a directory"):
        SafetensorsIndex(tmp_path)


def test_no_weights(tmp_path):
    with pytest.raises(UserError, match="--random-weights"):
        SafetensorsIndex(tmp_path)
