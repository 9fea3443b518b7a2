"""Streams decode to the same text as the whole does; stop texts never leak."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from penstock.errors import UserError
from penstock.model import tokenizer as tokenizers_of
from penstock.model.source import Source
from penstock.model.tokenizer import Detokenizer, encode_chat, encode_prompt, has_chat_template

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] not in ('user', 'assistant') %}{{ raise_exception('no such role') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
BOS = 256


def byte_tokenizer(chat_template=None):
    """One token per byte, and a BOS that the tokenizer puts first by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: at for at, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<s>"])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", chat_template=chat_template)


@pytest.fixture(scope="module")
def plain():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def chatty():
    return byte_tokenizer(TEMPLATE)


def bytes_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_prompt_gets_bos_and_chat_only_one(plain, chatty):
    assert encode_prompt(plain, "hi") == [BOS, *bytes_of(plain, "hi")]
    encoded = encode_chat(chatty, [{"role": "user", "content": "hi"}])
    assert encoded == [BOS, *bytes_of(chatty, "[user]hi[assistant]")]
    assert has_chat_template(chatty) and not has_chat_template(plain) and not has_chat_template(None)


def test_text_parts_are_joined(chatty):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert encode_chat(chatty, [{"role": "user", "content": parts}]) == encode_chat(
        chatty, [{"role": "user", "content": "one\ntwo"}]
    )


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "part of type image_url"),
        ([{"role": "user", "content": [{"type": "text"}]}], "part of type text"),
        ([{"role": "user", "content": ["words"]}], "part of type str"),
        ([{"role": "user", "content": 3}], "not int"),
        ([{"content": "x"}], "A message is"),
        (["x"], "A message is"),
        ([{"role": "nobody", "content": "x"}], "chat template refuses these messages: no such role"),
        ([{"role": "user", "content": "a\ud800"}], "The text is not valid Unicode \\(at character"),
    ],
)
def test_messages_that_are_refused(chatty, messages, what):
    with pytest.raises(UserError, match=what):
        encode_chat(chatty, messages)


def test_half_of_a_surrogate_pair_is_refused(plain):
    with pytest.raises(UserError, match=r"^The text is not valid Unicode \(at character 2\): mend or remove it\.$"):
        encode_prompt(plain, "ab\ud800")


def test_what_the_model_has_not(plain):
    with pytest.raises(UserError, match="no chat template"):
        encode_chat(plain, [{"role": "user", "content": "x"}])
    for ask in (encode_prompt, encode_chat):
        with pytest.raises(UserError, match="no tokenizer: give prompt_token_ids"):
            ask(None, "x")


def test_load(tmp_path, chatty):
    source = Source("tiny", "safetensors", tmp_path, None, None, None)
    assert tokenizers_of.load(source) is None
    chatty.save_pretrained(tmp_path)
    assert encode_prompt(tokenizers_of.load(source), "hi") == encode_prompt(chatty, "hi")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer of tiny cannot be read"):
        tokenizers_of.load(source)


def test_characters_come_whole(plain):
    detokenizer = Detokenizer(plain)
    pieces = [detokenizer.push([token]) for token in bytes_of(plain, "aé😀b")]
    assert pieces == ["a", "", "é", "", "", "", "😀", "b"]


def test_finish_gives_up_an_incomplete_character(plain):
    detokenizer = Detokenizer(plain)
    assert detokenizer.push(bytes_of(plain, "a😀")[:3]) == "a"
    assert detokenizer.finish() == "\ufffd"


def test_special_tokens_are_skipped(plain):
    tokens = [BOS, *bytes_of(plain, "a"), BOS]
    assert Detokenizer(plain).push(tokens) == "a"
    assert Detokenizer(plain, skip_special_tokens=False).push(tokens) == "<s>a<s>"


@pytest.mark.parametrize(
    ("text", "stop", "expected", "met"),
    [
        ("hello END more", ["END"], "hello ", "END"),
        ("hello EN", ["END"], "hello EN", None),
        ("aab", ["ab"], "a", "ab"),
        ("ababac", ["abac"], "ab", "abac"),
        ("one\n\ntwo", ["\n\n", "\n"], "one", "\n"),
        ("xyz", ["z", "y"], "x", "y"),
        ("é😀é", ["😀"], "é", "😀"),
        ("text", [""], "text", None),
    ],
)
def test_stop_texts(plain, text, stop, expected, met):
    detokenizer = Detokenizer(plain, stop)
    streamed = ""
    for token in bytes_of(plain, text):
        streamed += detokenizer.push([token])
        assert expected.startswith(streamed), "nothing of a stop text may leak"
    streamed += detokenizer.finish()
    assert (streamed, detokenizer.text, detokenizer.stopped) == (expected, expected, met)
    assert not met or detokenizer.push(bytes_of(plain, "more")) == ""


@given(text=st.text(max_size=30), cuts=st.lists(st.integers(1, 5), min_size=1, max_size=10))
@settings(max_examples=60, deadline=None)
def test_any_cut_of_the_stream_gives_the_same_text(text, cuts):
    tokenizer = SHARED
    tokens = bytes_of(tokenizer, text)
    detokenizer = Detokenizer(tokenizer, ["ab"])
    at = 0
    while at < len(tokens):
        step = cuts[at % len(cuts)]
        detokenizer.push(tokens[at : at + step])
        at += step
    detokenizer.finish()
    assert detokenizer.text == tokenizer.decode(tokens).partition("ab")[0]


SHARED = byte_tokenizer()
