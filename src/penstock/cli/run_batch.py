"""``penstock run-batch``: a file of requests in, a file of answers out, whatever happens in between."""

import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from penstock.cli import figures, options
from penstock.cli.console import Display, stderr_display
from penstock.cli.run_flags import Flags, run_flags
from penstock.cli.summary import summary
from penstock.errors import UserError
from penstock.units import format_seconds

if TYPE_CHECKING:
    from penstock.jobs.stop import Stop

EXAMPLES = """\
Examples:
  penstock run-batch Qwen/Qwen3-30B-A3B -i questions.jsonl -o answers.jsonl --cpu-memory 16GiB
  penstock run-batch ./llama-70b -i batch.jsonl.gz -o answers.jsonl --kv cpu=50%,disk=50%
  penstock run-batch ./llama-70b -i batch.jsonl.gz -o answers.jsonl --weight-bits auto
  penstock run-batch ./llama-70b -i batch.jsonl.gz -o answers.jsonl --retry-errors
  penstock run-batch --status answers.jsonl
"""
STOPPED = 1
REASONS = {"invalid_json": "not JSON", "invalid_request": "invalid"}  # other codes read well as they are

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="a Hugging Face directory, a GGUF file, a hub id, or demo",
        show_default=False,
        callback=options.named_model,
    ),
]
Input = Annotated[
    str | None,
    options.option(
        options.OUTPUT,
        "--input",
        'lines in OpenAI\'s batch form, or {"prompt"}, {"messages"} or {"prompt_token_ids"}; .gz and .zst too',
        metavar="FILE",
        short=("-i",),
    ),
]
Output = Annotated[
    str | None,
    options.option(
        options.OUTPUT,
        "--output",
        "where answers are appended; the same command goes on with it",
        metavar="FILE",
        short=("-o",),
    ),
]
Overwrite = Annotated[bool, options.option(options.OUTPUT, "--overwrite", "begin anew, whatever the output holds")]
RetryErrors = Annotated[bool, options.option(options.OUTPUT, "--retry-errors", "run lines again that had an error")]
Status = Annotated[
    str | None,
    options.option(options.OUTPUT, "--status", "say how far the job of an output file is, and end", metavar="FILE"),
]


@run_flags
def run_batch(
    model: Model = None,
    input: Input = None,
    output: Output = None,
    status: Status = None,
    overwrite: Overwrite = False,
    retry_errors: RetryErrors = False,
    no_chat: options.NoChat = False,
    json_: options.Json = False,
    *,
    sampling: Flags,
    how: Flags,
) -> None:
    """Answer every line of a file; what is answered survives whatever stops the job, and the same command goes on."""
    if status is not None:
        _show_status(status, json_)
        return
    if model is None or input is None or output is None:
        raise UserError("run-batch needs MODEL, -i FILE and -o FILE (or --status FILE alone)")
    source, out = Path(input), Path(output)

    from penstock.jobs.answers import scan
    from penstock.jobs.errors import JobStopped
    from penstock.jobs.job import JobFile, check_same_job
    from penstock.jobs.paths import check_paths
    from penstock.jobs.stop import Stop
    from penstock.jobs.terms import Wish
    from penstock.sampling import SamplingParams

    wish = Wish(SamplingParams(**sampling), False if no_chat else None, overwrite, retry_errors)
    display, stop_ = stderr_display(json_), Stop()
    try:
        check_paths(source, out)
        with _stops(stop_, json_), JobFile.open(out, overwrite=overwrite) as job:
            done = None if overwrite else scan(out)
            if done is not None:
                check_same_job(out, len(done), job.stored, wish.said())
            if done is not None and job.stored is not None:
                resuming = _resuming(done.answered, done.errors, retry_errors, job.stored)
                display.show({"kind": "note", "text": resuming})

            from penstock.batch import run_batch as answer
            from penstock.llm import LLM
            from penstock.model.precision import Precision

            goes_on = job.stored is not None and how["dtype"] == "auto"
            dtype = Precision.again(str(job.stored["dtype"])) if job.stored and goes_on else how["dtype"]

            with LLM(model, **{**how, "dtype": dtype}, on_event=display.show) as llm:
                run = answer(llm, source, out, wish, job, done, stop_)
    except JobStopped as stopped:
        display.close()
        typer.echo(f"penstock: {stopped}", err=True)
        raise options.Stopped(STOPPED) from stopped
    except KeyboardInterrupt:
        _stopped_at_once(display)
    except UserError:
        raise
    except Exception:
        # what is interrupted while a library is being imported may swallow that, and fail in any way
        if not stop_.asked or stop_.running:
            raise
        _stopped_at_once(display)
    finally:
        display.close()
    _print_end(run, out, json_, stopped=stop_.asked)
    if stop_.asked and run["to_go"]:
        raise options.Stopped(options.INTERRUPTED)


def _stopped_at_once(display: Display) -> NoReturn:
    display.close()
    typer.echo("penstock: stopped at once; the same command goes on with what was answered", err=True)
    raise options.Stopped(options.INTERRUPTED) from None


@contextmanager
def _stops(stop: "Stop", as_json: bool) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the job after its sweep; the next, and one before any sweep, at once."""
    text = "stopping at the end of this sweep (Ctrl-C again: at once)"
    told = (json.dumps({"kind": "note", "text": text}) + "\n" if as_json else f"\n{text}\n").encode()

    def ask(number: int, frame: FrameType | None) -> None:
        if not stop.running or stop.asked:
            stop.asked = True
            raise KeyboardInterrupt
        stop.ask()
        # straight to the terminal, if it is still there: the interrupted code may be in the middle of a print
        with suppress(OSError):
            os.write(2, told)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _resuming(answered: int, errors: int, retried: bool, stored: Mapping[str, Any]) -> str:
    """What a start that goes on with a job says first: what is done, and the settings that hold from then."""
    told = "which run again" if retried else "--retry-errors runs them again"
    again = f" ({figures.count(errors, 'error')}, {told})" if errors else ""
    settings = {name: value for name, value in stored.items() if name not in ("model", "dtype", "chat", "seed")}
    said = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    return f"{answered:,} answered before{again}" + (f"; going on with {said}" if said else "")


def _print_end(run: Mapping[str, Any], out: Path, as_json: bool, stopped: bool) -> None:
    if as_json:
        print(json.dumps({"run": run}))
        return
    if run.get("sweeps"):
        typer.echo(summary(run, table=True), err=True)
    errors = f", {run['errors']:,} with errors" if run["errors"] else ""
    if full := run["context_full"]:
        kept = f"{figures.count(full, 'answer')} of this run ended where the model's context was full"
        typer.echo(f"{kept}, before max_tokens (finish_reason length)", err=True)
    if stopped and run["to_go"]:
        told = f"{run['answered']:,} of {run['lines']:,} answered{errors}. The same command goes on where this stopped."
    else:
        told = f"{out.name + '  ':<12}{run['answered']:,} answered{errors}{_reasons(run)}"
    typer.echo(told, err=True)


def _reasons(run: Mapping[str, Any]) -> str:
    """How many error lines there are of each kind, the most frequent first; where one is alone, which it is."""
    kinds = []
    for code, number in sorted(run["errors_by_code"].items(), key=lambda item: -item[1]):
        alone = f" (line {run['first_error_lines'][code]:,})" if number == 1 else ""
        kinds.append(f"{number:,} {REASONS.get(code, code.replace('_', ' '))}{alone}")
    return f": {', '.join(kinds)}" if kinds else ""


def _show_status(out: str, as_json: bool) -> None:
    from penstock.jobs.job import status

    told = status(out)
    if as_json:
        print(json.dumps(told))
        return
    answered, errors, to_go = (told[name] or 0 for name in ("answered", "errors", "to_go"))
    parts = [f"{answered:,} of {told['lines'] or 0:,} answered", f"{errors:,} with errors", f"{to_go:,} to go"]
    if told["pid"] is None:
        parts.append("not running" if to_go or not told["lines"] else "done")  # no lines: killed before it began
    else:
        parts.append(f"running (pid {told['pid']})")
        if told["tok_s"]:
            parts.append(f"{figures.speed(told['tok_s'])} tok/s")
        if told["eta_s"] is not None:
            parts.append(f"{format_seconds(told['eta_s'])} left")
    print(" · ".join(parts))
