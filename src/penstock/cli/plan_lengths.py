"""How long the prompts of a file are, in tokens, how they begin, and how much each asks for: a plan's view of a job."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.cli import figures
from penstock.errors import UserError
from penstock.jobs.lines import Line, read_lines
from penstock.jobs.request import Parsed, parse
from penstock.model.names import DEMO
from penstock.plan.beginnings import Beginnings

ENCODED = 1000  # prompts whose tokens are counted; those of later ones are estimated from their bytes
MOST_ALIKE = 16384  # prompts, beyond which what they have in common takes too long to follow
BYTES_PER_TOKEN = 4.0  # where there is no tokenizer: about that of English prose
PLAIN_SUFFIXES = (".txt", ".text", ".md", "")

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Prompts:
    """The lines of a file that can be run.

    lengths: (prompt tokens, tokens to generate) of each, in the model's own tokens. ids: of each prompt, where prompts
    begin alike; None where they do not. Those of prompts that were not encoded are made up: they begin as others do.
    """

    lengths: list[tuple[int, int]]
    ids: Sequence[Sequence[int]] | None = None


def prompts_of(source: str, model: str, gen_len: int, trust_remote_code: bool, note: Note) -> Prompts:
    """What a file asks for.

    source: JSON lines as ``run-batch`` takes them, plain or compressed, or a text file with a prompt on each line.
    gen_len: where a line says nothing. Raises UserError where the file cannot be read or holds no line that runs.
    """
    if source == "-":
        raise UserError("-i -: a plan is made before a job, which reads its input again; write it to a file first")
    path = Path(source)
    count = _Counter(model, trust_remote_code)
    found: list[tuple[int, int]] = []
    known: dict[int, Sequence[int]] = {}
    faults: list[Parsed] = []
    for line in read_lines(path):
        request = parse(line) if path.suffix not in PLAIN_SUFFIXES else _plain(line)
        if request.fault is not None:
            faults.append(request)
            continue
        tokens, ids = count.tokens(request)
        if ids is not None and len(known) < ENCODED:
            known[len(found)] = ids
        found.append((tokens, request.params.max_tokens or gen_len))
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
    return Prompts(found, _ids(source, found, known, note))


def _ids(
    source: str, lengths: Sequence[tuple[int, int]], known: Mapping[int, Sequence[int]], note: Note
) -> Sequence[Sequence[int]] | None:
    """Token ids of all prompts, where those that are known begin alike."""
    alike = Beginnings(list(known.values()))
    if not alike.part:
        return None
    if len(lengths) > MOST_ALIKE:
        note(
            f"{alike.part:.0%} of the tokens of {source} are common beginnings: a run computes them once, and this plan"
            f" for each prompt, because there are more than {MOST_ALIKE:,}"
        )
        return None
    return [known[i] if i in known else alike.supposed(i, tokens) for i, (tokens, _) in enumerate(lengths)]


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

    def tokens(self, request: Parsed) -> tuple[int, Sequence[int] | None]:
        """How many tokens a request's prompt has, and which, if that is known."""
        ids = request.prompt.get("prompt_token_ids")
        if ids is not None:
            return len(ids), ids
        nbytes = len(_text(request.prompt).encode())
        if not self._loaded:
            self._load()
        if self._tokenizer is None or self._counted >= ENCODED:
            self.estimated += 1
            rate = self._bytes / self._tokens if self._tokens else BYTES_PER_TOKEN
            return max(1, round(nbytes / rate)), None
        encoded = self._encoded(request)
        self._counted += 1
        self._bytes += nbytes
        self._tokens += len(encoded)
        return len(encoded), encoded

    def _load(self) -> None:
        from penstock.model import source, tokenizer

        # the small files of a hub model are enough here: its weights are not asked for
        configs_only = self._model != DEMO and not self._model.lower().endswith(".gguf")
        found = source.resolve(self._model, trust_remote_code=self._trust_remote_code, random_weights=configs_only)
        self._tokenizer = tokenizer.load(found, trust_remote_code=self._trust_remote_code)
        self._loaded = True

    def _encoded(self, request: Parsed) -> Sequence[int]:
        from penstock.model import tokenizer

        prompt, own = request.prompt, self._tokenizer
        if "messages" in prompt:
            return tokenizer.encode_chat(own, prompt["messages"])
        if request.kind == "plain" and tokenizer.has_chat_template(own):
            return tokenizer.encode_chat(own, [{"role": "user", "content": prompt["prompt"]}])
        return tokenizer.encode_prompt(own, prompt["prompt"])


def _text(prompt: Mapping[str, Any]) -> str:
    """All text of a prompt, whatever its form."""
    if "prompt" in prompt:
        return str(prompt["prompt"])
    parts = []
    for message in prompt["messages"]:
        content = message.get("content") or ""
        parts += [content] if isinstance(content, str) else [part["text"] for part in content]
    return "\n".join(parts)
