"""What is kept of a GGUF file's config and tokenizer is what transformers makes of it, and made anew once damaged."""

import gguf
import pytest
from transformers import AutoConfig, AutoTokenizer
from transformers.integrations.ggml import _gguf_parse_value

from penstock.model import gguf_config
from penstock.model.gguf_config import load_config, load_tokenizer

TEXTS = ["hello there", "a  b\n12", "<s>é日"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "tiny.gguf")


def write(path, tokenizer=True, layers=3):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    if tokenizer:
        letters = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ", "Ã", "©"]
        tokens = ["<s>", "</s>", *letters, "he", "ll"]
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
        writer.add_token_scores([0.5] * len(tokens))
        writer.add_token_merges(["h e", "l l"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    else:
        writer.add_vocab_size(40)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def same(tokenizer, reference):
    assert tokenizer.backend_tokenizer.to_str() == reference.backend_tokenizer.to_str()
    assert tokenizer.special_tokens_map == reference.special_tokens_map
    assert tokenizer.chat_template == reference.chat_template
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [reference(text)["input_ids"] for text in TEXTS]


def survives(tokenizer, config, folder):
    """Whether a tokenizer that is saved is the same when it is read again; in transformers 5.5 it is not."""
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    try:
        same(AutoTokenizer.from_pretrained(folder), tokenizer)
    except (AssertionError, ValueError):
        return False
    return True


def test_same_as_transformers_at_first_and_when_kept(path, cache, monkeypatch):
    where, options = str(path.parent), {"gguf_file": path.name, "local_files_only": True}
    config, tokenizer = AutoConfig.from_pretrained(where, **options), AutoTokenizer.from_pretrained(where, **options)
    first = load_config(path)
    (home,) = cache.iterdir()
    if not (home / "tokenizer.json").exists():
        assert not survives(tokenizer, config, cache.parent / "saved"), "what reads back as it was is kept"
        same(load_tokenizer(path), tokenizer)
        pytest.skip("transformers itself does not read this tokenizer back as it was, so it is converted each time")
    monkeypatch.setattr(gguf_config, "_quick_reading", lambda: pytest.fail("the kept files are enough"))
    for found in (first, load_config(path)):
        assert {**found.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
    assert tokenizer("hello")["input_ids"], "the test's tokenizer knows its text"
    same(load_tokenizer(path), tokenizer)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "checksums.json"])
@pytest.mark.parametrize("damage", [lambda f: f.write_text("{}"), lambda f: f.unlink()], ids=["changed", "absent"])
def test_damage_is_rebuilt(path, cache, name, damage):
    load_config(path)
    (home,) = cache.iterdir()
    if not (home / name).exists():
        pytest.skip(f"{name} is not kept (see above)")
    before = (home / name).read_bytes()
    damage(home / name)
    assert load_config(path).num_hidden_layers == 3
    assert (home / name).read_bytes() == before
    assert [home] == list(cache.iterdir()), "nothing half-built is left"


def test_another_file_in_its_place(path):
    assert load_config(path).num_hidden_layers == 3
    write(path, tokenizer=False, layers=5)
    assert load_config(path).num_hidden_layers == 5


def test_without_tokenizer(tmp_path):
    path = write(tmp_path / "bare.gguf", tokenizer=False)
    assert load_config(path).vocab_size == load_config(path).vocab_size == 40
    with pytest.raises(gguf_config.UNREADABLE):
        load_tokenizer(path)


def test_cache_that_cannot_be_written(path, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "file"))
    assert load_config(path).num_hidden_layers == 3
    assert load_tokenizer(path)("he")["input_ids"]


def test_a_config_that_is_not_read_back_is_used_as_it_is(path, cache, monkeypatch):
    def refused(config, directory):
        raise ValueError("no such field")

    monkeypatch.setattr(gguf_config, "_same_config", refused)
    assert load_config(path).num_hidden_layers == 3
    assert list(cache.iterdir()) == [], "nothing half made is left"


def test_quick_reader_reads_the_same(path):
    reference, quick = gguf.GGUFReader(path), gguf_config._Reader(path)
    assert list(reference.fields) == list(quick.fields)
    for name, field in reference.fields.items():
        found = quick.fields[name]
        assert found.types == field.types
        assert [_gguf_parse_value(found.parts[i], found.types) for i in found.data] == [
            _gguf_parse_value(field.parts[i], field.types) for i in field.data
        ], name
