"""Between text and token ids: loading a model's tokenizer, encoding prompts and chats, decoding streams."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer

from penstock.errors import UserError
from penstock.model import gguf_config
from penstock.model.source import Source

FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "tiktoken.model")
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError)
# a template is a program: what it meets in a message that it did not expect can raise anything of these
TEMPLATE_FAILURES = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
REPLACEMENT = "\ufffd"  # what a tokenizer decodes an incomplete character to
MOST_HELD_TOKENS = 16  # bytes that are no text at all must come out some time

Message = Mapping[str, Any]


def load(source: Source, *, trust_remote_code: bool = False) -> Any | None:
    """The model's tokenizer, or None where it has none; UserError where its files cannot be read."""
    if source.kind != "gguf" and not any((source.path / name).exists() for name in FILES):
        return None
    try:
        if source.kind == "gguf":
            return gguf_config.load_tokenizer(source.path)
        return AutoTokenizer.from_pretrained(
            str(source.path), local_files_only=True, trust_remote_code=trust_remote_code
        )
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The tokenizer of {source.name} cannot be read: {reason[:200]}") from error


def has_chat_template(tokenizer: Any | None) -> bool:
    """Whether the model says how a conversation is written as text."""
    return bool(getattr(tokenizer, "chat_template", None))


def encode_prompt(tokenizer: Any | None, text: str) -> list[int]:
    """The token ids of raw text, with the special tokens that the tokenizer itself adds (BOS).

    UserError where there is no tokenizer, or the text is not valid Unicode.
    """
    return _ids(_present(tokenizer)(_unicode(text)))


def encode_chat(tokenizer: Any | None, messages: Sequence[Message]) -> list[int]:
    """The token ids of a conversation, up to where the assistant's answer begins; the template alone writes BOS.

    messages: ``{"role", "content"}`` each; content is text or a list of ``{"type": "text", "text"}`` parts. UserError
    for other parts (images), for what the template refuses, and for text that is not valid Unicode.
    """
    tokenizer = _present(tokenizer)
    if not has_chat_template(tokenizer):
        raise UserError("The model has no chat template: give a prompt instead of messages.")
    plain = [_plain(message) for message in messages]
    try:
        text = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    except TEMPLATE_FAILURES as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The model's chat template refuses these messages: {reason[:200]}") from error
    return _ids(tokenizer(_unicode(text), add_special_tokens=False))


def _plain(message: Message) -> dict[str, Any]:
    """The message with its text parts joined, since templates of text models expect a string."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UserError(f'A message is {{"role": …, "content": …}}, not {str(message)[:80]}.')
    content = message.get("content")
    if content is None or isinstance(content, str):
        return dict(message)
    if not isinstance(content, Sequence):
        raise UserError(f"A message's content is text or a list of parts, not {type(content).__name__}.")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if not isinstance(part, Mapping) or kind != "text" or not isinstance(part.get("text"), str):
            raise UserError(f"A message has a part of type {kind}: only the text model runs, so only text is taken.")
        texts.append(part["text"])
    return {**message, "content": "\n".join(texts)}


def _present(tokenizer: Any | None) -> Any:
    if tokenizer is None:
        raise UserError("The model has no tokenizer: give prompt_token_ids instead of text.")
    return tokenizer


def _unicode(text: str) -> str:
    """The text, if tokenizers can read it: half of a surrogate pair is nothing that UTF-8 has bytes for."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"The text is not valid Unicode (at character {error.start:,}): mend or remove it.") from None
    return text


def _ids(encoded: Any) -> list[int]:
    return [int(token) for token in encoded["input_ids"]]


def decode(tokenizer: Any, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
    """The text of tokens as it was generated: a tokenizer's own clean-up of spaces would change what came before."""
    return str(tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False))


class Detokenizer:
    """Turns one row's tokens into text as they come.

    stop: texts at which the row ends; the text returned ends before the first of them. ``text``: all text returned so
    far. ``stopped``: the stop text that was met, or None.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), *, skip_special_tokens: bool = True) -> None:
        self.text = ""
        self.stopped: str | None = None
        self._tokenizer = tokenizer
        self._stop = tuple(text for text in stop if text)
        self._skip_special_tokens = skip_special_tokens
        self._tokens: list[int] = []
        self._context = 0  # tokens before this one no longer change how later ones are decoded
        self._decoded = 0  # tokens before this one are in _held or in text
        self._held = ""  # decoded, and perhaps the start of a stop text

    def push(self, tokens: Sequence[int]) -> str:
        """The text that these tokens complete; empty after a stop text was met."""
        released = ""
        for token in tokens:
            if self.stopped is None:
                self._tokens.append(token)
                released += self._release(self._decode(final=False), final=False)
        return released

    def finish(self) -> str:
        """The text held back until now, when no more tokens come: incomplete characters as replacement marks."""
        if self.stopped is not None:
            return ""
        return self._release(self._decode(final=True), final=True)

    def _decode(self, *, final: bool) -> str:
        """Newly complete characters. A few earlier tokens are decoded along: tokenizers treat a first token apart."""
        before = self._string(self._tokens[self._context : self._decoded])
        after = self._string(self._tokens[self._context :])
        pending = len(self._tokens) - self._decoded
        if not final and after.endswith(REPLACEMENT) and pending < MOST_HELD_TOKENS:
            return ""
        if len(after) <= len(before):
            return ""
        self._context, self._decoded = self._decoded, len(self._tokens)
        return after[len(before) :]

    def _string(self, tokens: Sequence[int]) -> str:
        return decode(self._tokenizer, tokens, skip_special_tokens=self._skip_special_tokens)

    def _release(self, new: str, *, final: bool) -> str:
        """What of the held and the new text can no longer be part of a stop text."""
        held = self._held + new
        found = ((held.find(stop), stop) for stop in self._stop if stop in held)
        met = min(found, key=lambda place: place[0], default=None)
        if met is not None:
            at, self.stopped = met
            released, self._held = held[:at], ""
        else:
            kept = 0 if final else max((_overlap(held, stop) for stop in self._stop), default=0)
            released, self._held = held[: len(held) - kept], held[len(held) - kept :]
        self.text += released
        return released


def _overlap(text: str, stop: str) -> int:
    """The longest end of ``text`` that is the beginning of ``stop``."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
