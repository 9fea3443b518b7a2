"""The command line: ``penstock COMMAND …``. Parsing and printing only."""

import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, NoReturn

import typer

from penstock.cli import cache, evaluate, generate, models, options, plan, profile, run_batch, simulate, trace
from penstock.cli.options import INTERRUPTED
from penstock.errors import DISK_FULL, UserError

# typer carries click inside itself or stands on it, by version: this name reaches the base of usage errors in both
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="penstock",
    help="Language-model generation on memory that is too small for it.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=options.HELP,
)
app.command(
    "generate", cls=options.Command, epilog=generate.EXAMPLES, short_help="generate text for one prompt or many"
)(generate.generate)
app.command(
    "run-batch", cls=options.Command, epilog=run_batch.EXAMPLES, short_help="answer every line of a file, and survive"
)(run_batch.run_batch)
app.command(
    "plan", cls=options.Command, epilog=plan.EXAMPLES, short_help="say how fast a job will be and why, beforehand"
)(plan.plan)
app.command(
    "models", cls=options.Command, epilog=models.EXAMPLES, short_help="show what a model weighs and what a budget holds"
)(models.models)
app.command(
    "eval", cls=options.Command, epilog=evaluate.EXAMPLES, short_help="score a model on a text, packed and as it is"
)(evaluate.evaluate)
app.command(
    "profile", cls=options.Command, epilog=profile.EXAMPLES, short_help="measure what this host computes and reads"
)(profile.profile)
app.command(
    "simulate", cls=options.Command, epilog=simulate.EXAMPLES, short_help="replay placement and migration of KV"
)(simulate.simulate)
app.add_typer(cache.app, name="cache", short_help="list or clear pages that are kept converted")
app.add_typer(trace.app, name="trace", short_help="make, record, import and look at skip traces")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version", show_default=False)] = False,
) -> None:
    if version:
        import importlib.metadata  # as slow to import as all else here

        typer.echo(f"penstock {importlib.metadata.version('penstock')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    arguments: those of the process if None. 2: a mistake that the person can mend, told in one line on stderr.
    """
    _settle_environment()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
    command = typer.main.get_command(app)
    try:
        status = command.main(
            None if arguments is None else list(arguments), prog_name="penstock", standalone_mode=False
        )
        if sys.stdout is not None:  # a shell may have closed it
            sys.stdout.flush()  # what cannot be written shows here, not in a message of the interpreter's own
    except UserError as error:
        return _complain(str(error), 2)
    except UsageError as error:
        return _complain(_usage(error), 2)
    except options.Stopped as stopped:
        return stopped.status
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except BrokenPipeError:  # whoever read the output has gone
        _let_go_of_output()
        return 1
    except OSError as error:
        if error.errno not in DISK_FULL or error.filename is not None:  # of a file by name whoever writes it tells
            raise
        _let_go_of_output()
        return _complain(f"the output cannot be written ({error.strerror}): make room where it goes", 1)
    if status == INTERRUPTED:
        return _complain("stopped before the end; nothing is kept of this run", INTERRUPTED)
    return status or 0


def _let_go_of_output() -> None:
    """Keep the interpreter's own flush at exit from complaining too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminated(signal_number: int, frame: FrameType | None) -> NoReturn:
    """Leave by the ordinary way out, which removes what a run keeps on disk; the status is what shells expect."""
    raise SystemExit(128 + signal_number)


def _usage(error: Exception) -> str:
    """A usage error in one line, with the help that would have prevented it."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "penstock"
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return f"{' '.join(message.split()).rstrip('.')} ({path} --help)"


def _settle_environment() -> None:
    """Settings that libraries read when they are imported, unless the person has set them."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _complain(line: str, status: int) -> int:
    typer.echo(f"penstock: {line}", err=True)
    return status
