"""How long the prompts of a file are, in tokens, and how much each asks for: what a plan needs of a job's input."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from penstock.cli import figures
from penstock.errors import UserError
from penstock.jobs.lines import Line, read_lines
from penstock.jobs.request import Parsed, parse

ENCODED = 1000  # prompts whose tokens are counted; those of later ones are estimated from their bytes
BYTES_PER_TOKEN = 4.0  # where there is no tokenizer: about that of English prose
PLAIN_SUFFIXES = (".txt", ".text", ".md", "")

Note = Callable[[str], None]


def lengths_of(source: str, model: str, gen_len: int, trust_remote_code: bool, note: Note) -> list[tuple[int, int]]:
    """(prompt tokens, tokens to generate) of every line that can be run, in the model's own tokens.

    source: JSON lines as ``run-batch`` takes them, plain or compressed, or a text file with a prompt on each line.
    gen_len: where a line says nothing. Raises UserError where the file cannot be read or holds no line that runs.
    """
    if source == "-":
        raise UserError("-i -: a plan is made before a job, which reads its input again; write it to a file first")
    path = Path(source)
    count = _Counter(model, trust_remote_code)
    found: list[tuple[int, int]] = []
    faults: list[Parsed] = []
    for line in read_lines(path):
        request = parse(line) if path.suffix not in PLAIN_SUFFIXES else _plain(line)
        if request.fault is not None:
            faults.append(request)
            continue
        found.append((count.tokens(request), request.params.max_tokens or gen_len))
    if faults:
        first = f"line {faults[0].number}: {faults[0].fault}"
        if not found:
            raise UserError(f"-i {source} has no line that can be run ({first})")
        note(f"{figures.count(len(faults), 'line')} of {source} cannot be run and are left out ({first})")
    if not found:
        raise UserError(f"-i {source} is empty: put one prompt on each line")
    if not count.has_tokenizer and count.estimated:
        note(f"{model} has no tokenizer beside it: prompts are taken to have {BYTES_PER_TOKEN:g} bytes a token")
    elif count.estimated:
        note(f"tokens of {ENCODED:,} prompts are counted, those of {count.estimated:,} estimated from their bytes")
    return found


def _plain(line: Line) -> Parsed:
    """A line of a text file as a request, by way of what JSON lines go through."""
    import json

    text = line.data.decode("utf-8", "replace")
    return parse(Line(line.number, json.dumps({"prompt": text}).encode(), line.fault))


class _Counter:
    """Tokens of prompts: counted for the first ones, estimated from bytes after that."""

    def __init__(self, model: str, trust_remote_code: bool) -> None:
        self._model, self._trust_remote_code = model, trust_remote_code
        self._loaded = False
        self._tokenizer: Any | None = None
        self._bytes = self._tokens = self._counted = 0
        self.estimated = 0

    @property
    def has_tokenizer(self) -> bool:
        """Whether the model's own tokenizer counts."""
        return self._tokenizer is not None

    def tokens(self, request: Parsed) -> int:
        """Tokens of a request's prompt."""
        ids = request.prompt.get("prompt_token_ids")
        if ids is not None:
            return len(ids)
        nbytes = len(_text(request.prompt).encode())
        if not self._loaded:
            self._load()
        if self._tokenizer is None or self._counted >= ENCODED:
            self.estimated += 1
            rate = self._bytes / self._tokens if self._tokens else BYTES_PER_TOKEN
            return max(1, round(nbytes / rate))
        counted = self._encoded(request)
        self._counted += 1
        self._bytes += nbytes
        self._tokens += counted
        return counted

    def _load(self) -> None:
        from penstock.model import source, tokenizer

        # the small files of a hub model are enough here: its weights are not asked for
        configs_only = self._model != source.DEMO and not self._model.lower().endswith(".gguf")
        found = source.resolve(self._model, trust_remote_code=self._trust_remote_code, random_weights=configs_only)
        self._tokenizer = tokenizer.load(found, trust_remote_code=self._trust_remote_code)
        self._loaded = True

    def _encoded(self, request: Parsed) -> int:
        from penstock.model import tokenizer

        prompt, own = request.prompt, self._tokenizer
        if "messages" in prompt:
            return len(tokenizer.encode_chat(own, prompt["messages"]))
        if request.kind == "plain" and tokenizer.has_chat_template(own):
            return len(tokenizer.encode_chat(own, [{"role": "user", "content": prompt["prompt"]}]))
        return len(tokenizer.encode_prompt(own, prompt["prompt"]))


def _text(prompt: Mapping[str, Any]) -> str:
    """All text of a prompt, whatever its form."""
    if "prompt" in prompt:
        return str(prompt["prompt"])
    parts = []
    for message in prompt["messages"]:
        content = message.get("content") or ""
        parts += [content] if isinstance(content, str) else [part["text"] for part in content]
    return "\n".join(parts)
