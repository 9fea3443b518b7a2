"""``penstock trace record``: a skip trace from a real run."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import options
from penstock.cli.console import stderr_display
from penstock.cli.figures import count
from penstock.cli.overwrites import refuse_nowhere, refuse_overwriting
from penstock.cli.prompts import Prompt, read_prompts
from penstock.cli.run_flags import Flags, run_flags
from penstock.cli.summary import summary
from penstock.errors import UserError
from penstock.units import format_bytes

if TYPE_CHECKING:
    from penstock.recording import Recording

EXAMPLES = """\
Examples:
  penstock trace record demo -i book.txt --prompt-tokens 600 --max-tokens 257 --output book.skip
  penstock trace record ./llama-8b --prompt "Tell me a story." --rule top-p:0.95 --output story.skip
  penstock trace record demo -i questions.jsonl --rule threshold:0.001 --sinks 0 --output first.skip
"""

RECORD = "What is recorded"

Output = Annotated[str, options.option(options.OUTPUT, "--output", "the trace to write", metavar="FILE", short=("-o",))]
Text = Annotated[
    str | None, options.option(options.OUTPUT, "--prompt", "the text to go on from, instead of -i", metavar="TEXT")
]
Input = Annotated[
    str | None,
    options.option(
        options.OUTPUT,
        "--input",
        "a text file, taken whole and as it is, or the first prompt of a .jsonl file; - is standard input",
        metavar="FILE",
        short=("-i",),
    ),
]
PromptTokens = Annotated[
    int | None,
    options.option(
        options.OUTPUT,
        "--prompt-tokens",
        "take the first N tokens of the prompt, without chat template",
        metavar="N",
        min=1,
    ),
]
RuleText = Annotated[
    str,
    options.option(
        RECORD,
        "--rule",
        "what a head reads: top-k:64 or top-k:25% (default) tokens, top-p:0.95 of its attention, or tokens of at least"
        " threshold:0.001; what no KV head reads is skipped",
        metavar="RULE",
    ),
]
Sinks = Annotated[
    int, options.option(RECORD, "--sinks", "first tokens that are always read (default: 4)", metavar="N", min=0)
]
Recent = Annotated[
    int, options.option(RECORD, "--recent", "latest tokens that are always read (default: 16)", metavar="N", min=0)
]


@run_flags
def record(
    model: options.Model,
    output: Output,
    prompt: Text = None,
    input: Input = None,
    prompt_tokens: PromptTokens = None,
    rule: RuleText = "top-k:25%",
    sinks: Sinks = 4,
    recent: Recent = 16,
    no_chat: options.NoChat = False,
    json_: options.Json = False,
    *,
    sampling: Flags,
    how: Flags,
) -> None:
    """Generate for one prompt, and write which cached tokens each step could have passed over at each layer."""
    refuse_overwriting({"--output": output}, {"--input": input, "MODEL": model})
    refuse_nowhere("--output", output)
    path = Path(output)
    asked, is_text = _prompt(prompt, input)

    from penstock.sampling import SamplingParams

    params = SamplingParams(**sampling)

    from penstock.engine.skip_rule import Selection, parse_rule

    selection = Selection(parse_rule(rule), sinks, recent)

    from penstock.llm import LLM
    from penstock.recording import record as recorded

    display = stderr_display(json_)

    def on_event(event: Mapping[str, Any]) -> None:
        if event["kind"] != "text":
            display.show(event)

    try:
        with LLM(model, **how, on_event=on_event) as llm:
            chat = not (no_chat or is_text)
            found = recorded(llm, asked, params, selection, path, chat=chat, prompt_tokens=prompt_tokens)
    finally:
        display.close()
    if json_:
        print(json.dumps(_told(found, path)))
        return
    for line in _lines(found, path):
        typer.echo(line)
    sys.stdout.flush()
    typer.echo("\n" + summary(found.run), err=True)


def _prompt(text: str | None, source: str | None) -> tuple[Prompt, bool]:
    """The prompt, and whether it is the whole text of a file."""
    if text is None and source is None:
        raise UserError("no prompt: give --prompt TEXT, or -i FILE with a text to go on from")
    if text is not None and source is not None:
        raise UserError("the prompt comes from --prompt or from -i, not both: leave one of them out")
    if source is None or text is not None or source.endswith(".jsonl"):
        return read_prompts([] if text is None else [text], source)[0], False
    name = "standard input" if source == "-" else source
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        whole = data.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not UTF-8 (byte 0x{data[error.start]:02x} at {error.start}); convert it first"
        ) from error
    if not whole.strip():
        raise UserError(f"{name} holds no text; give some to go on from")
    return whole, True


def _lines(found: "Recording", path: Path) -> list[str]:
    trace, parameters = found.trace, found.trace.header.parameters
    shape, mass = trace.shape, found.mass_kept
    least = min(range(len(mass)), key=mass.__getitem__)
    return [
        f"{path}: {count(shape.steps, 'step')} after {count(shape.prefill_tokens, 'prompt token')},"
        f" {count(shape.layers, 'layer')}, {format_bytes(trace.coded_bytes)}",
        f"skipped: {_percent(trace.realised_skip)} of tokens by {trace.header.rule}"
        f" ({parameters['sinks']} first and {parameters['recent']} latest always read)",
        f"attention kept: {_percent(sum(mass) / len(mass))}; least at layer {least}, {_percent(mass[least])}",
    ]


def _percent(fraction: float) -> str:
    """To a tenth: what attention keeps is often nearly all."""
    return f"{100 * fraction:.1f} %"


def _told(found: "Recording", path: Path) -> dict[str, Any]:
    trace, answer = found.trace, found.output.outputs[0]
    return {
        "file": str(path),
        "prefill_tokens": trace.shape.prefill_tokens,
        "steps": trace.shape.steps,
        "layers": trace.shape.layers,
        "model": trace.header.model,
        "prompt_hash": trace.header.prompt_hash,
        "rule": trace.header.rule,
        **trace.header.parameters,
        "skip": trace.realised_skip,
        "raw_bytes": trace.raw_bytes,
        "coded_bytes": trace.coded_bytes,
        "text": answer.text,
        "token_ids": list(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "run": dict(found.run),
    }
