"""``penstock generate``: text for prompts."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from penstock.cli import options
from penstock.cli.console import Streamed, stderr_display, width_of
from penstock.cli.prompts import Prompt, read_prompts
from penstock.cli.run_flags import Flags, run_flags
from penstock.cli.summary import summary

if TYPE_CHECKING:
    from penstock.outputs import RequestOutput

EXAMPLES = """\
Examples:
  penstock generate demo "What is the capital of France?"
  penstock generate Qwen/Qwen3-30B-A3B -i questions.jsonl --cpu-memory 16GiB --json > answers.json
  penstock generate ./llama-70b -i prompts.txt --weights gpu=20%,cpu=50%,disk=30% --rows 64
  penstock generate ./llama-70b -i prompts.txt --weight-bits auto --kv-bits auto --allow-4bit
  seq -f "Tell me about the number %g." 100 | penstock generate demo -i - --max-tokens 40
"""


@run_flags
def generate(
    model: options.Model,
    prompts: options.Prompts = None,
    input: options.Input = None,
    no_chat: options.NoChat = False,
    json_: options.Json = False,
    *,
    sampling: Flags,
    how: Flags,
) -> None:
    """Generate text for one prompt or many, with a model larger than the memory it is given."""
    from penstock.sampling import SamplingParams

    requests, params = read_prompts(prompts or [], input), SamplingParams(**sampling)

    from penstock.llm import LLM

    display = stderr_display(json_)
    streamed = Streamed(sys.stdout, display)
    streams = len(requests) == 1 and not json_

    def on_event(event: Mapping[str, Any]) -> None:
        if event["kind"] != "text":
            display.show(event)
        elif streams:
            streamed.write(event["text"])

    try:
        with LLM(model, **how, on_event=on_event) as llm:
            outputs = llm.generate(requests, params, chat=not no_chat)
            run, mute = llm.last_run, llm.tokenizer is None
        display.close()
        _print_answers(requests, outputs, run, streamed, json_, mute)
    finally:
        display.close()
        if streamed.is_open:
            streamed.end_line()


def _print_answers(
    requests: Sequence[Prompt],
    outputs: "Sequence[RequestOutput]",
    run: Mapping[str, Any],
    streamed: Streamed,
    as_json: bool,
    mute: bool,
) -> None:
    """mute: the model has no tokenizer, so that token ids stand where text would."""
    if as_json:
        print(json.dumps({"outputs": [_record(i, o) for i, o in enumerate(outputs)], "run": run}))
        return
    answers = [output.outputs[0] for output in outputs]
    texts = [" ".join(map(str, answer.token_ids)) if mute else answer.text for answer in answers]
    if len(texts) == 1:
        streamed.finish(texts[0])
    else:
        _print_numbered(requests, texts)
    sys.stdout.flush()
    typer.echo("\n" + summary(run), err=True)


def _record(index: int, output: "RequestOutput") -> dict[str, Any]:
    answer = output.outputs[0]
    return {
        "index": index,
        "prompt": output.prompt,
        "prompt_token_ids": list(output.prompt_token_ids),
        "text": answer.text,
        "token_ids": list(answer.token_ids),
        "finish_reason": answer.finish_reason,
    }


def _print_numbered(requests: Sequence[Prompt], texts: Sequence[str]) -> None:
    width = width_of(sys.stdout)
    for number, (request, text) in enumerate(zip(requests, texts, strict=True), start=1):
        heading = f"── {number} ── {_first_line(request)}"
        if number > 1:
            typer.echo()
        typer.secho(heading if len(heading) <= width else heading[: width - 1] + "…", bold=True)
        typer.echo(text.strip("\n"))


def _first_line(request: Prompt) -> str:
    """What a person recognises a prompt by: its first line, or that of the last message."""
    if isinstance(request, str):
        text = request
    elif "prompt_token_ids" in request:
        return f"{len(request['prompt_token_ids'])} token ids"
    else:
        text = request["prompt"] if "prompt" in request else request["messages"][-1]["content"]
    return text.strip().split("\n")[0] if isinstance(text, str) else "(a message in parts)"
