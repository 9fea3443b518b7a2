"""``penstock eval``: what packing costs in quality, on a text."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.asked import check_here
from penstock.cli import options
from penstock.cli.console import stderr_display
from penstock.errors import UserError
from penstock.plan.types import Asked
from penstock.units import format_bytes

EXAMPLES = """\
Examples:
  penstock eval demo --weight-bits 4
  penstock eval ./llama-8b --weight-bits 8 --lm-head-bits 8 -i book.txt --tokens 20000
  penstock eval demo --kv-bits 4
  penstock eval demo --weight-bits 4 --plain --json
"""

TEXT = "What is scored"

Input = Annotated[
    str | None,
    options.option(
        TEXT, "--input", "a text file (default: the reference that Python ships with)", metavar="FILE", short=("-i",)
    ),
]
Tokens = Annotated[
    int, options.option(TEXT, "--tokens", "tokens from its beginning (default: 4096)", metavar="N", min=2)
]
Window = Annotated[
    int,
    options.option(TEXT, "--window", "tokens that are read together, from nothing (default: 512)", metavar="N", min=2),
]
Plain = Annotated[
    bool,
    options.option(
        TEXT, "--plain", "score plain rounding too, between the least and the largest element of each group"
    ),
]


def evaluate(
    model: options.Model,
    input: Input = None,
    tokens: Tokens = 4096,
    window: Window = 512,
    weight_bits: options.FixedWeightBits = None,
    lm_head_bits: options.LmHeadBits = None,
    kv_bits: options.FixedKvBits = None,
    plain: Plain = False,
    json_: options.Json = False,
    gpu_memory: options.GpuMemory = None,
    cpu_memory: options.CpuMemory = None,
    disk_memory: options.DiskMemory = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Show how well a model predicts a text: as it is, and with weights and KV packed as asked."""
    if window > tokens:
        raise UserError(f"--window {window:,} is more than the --tokens {tokens:,} to score: give a smaller one")
    check_here(Asked(), {"gpu": gpu_memory}, device)
    text = _text(input)
    display = stderr_display(json_)

    from penstock.scoring import compare

    try:
        rows = compare(
            model,
            text,
            tokens,
            window,
            weight_bits=weight_bits,
            lm_head_bits=lm_head_bits,
            kv_bits=kv_bits,
            plain=plain,
            dtype=dtype,
            device=device,
            gpu_memory=gpu_memory,
            cpu_memory=cpu_memory,
            disk_memory=disk_memory,
            trust_remote_code=trust_remote_code,
            on_event=display.show,
        )
    finally:
        display.close()
    if json_:
        print(json.dumps({"text": input or "pydoc_data.topics", "tokens": tokens, "window": window, "rows": rows}))
        return
    typer.echo(f"{input or 'the reference that Python ships with'}: {tokens:,} tokens in windows of {window:,}")
    for line in _table(rows):
        typer.echo(line)


def _text(input: str | None) -> str:
    if input is None:
        from pydoc_data.topics import topics  # English prose and examples, 700 kB

        return "\n".join(topics[name] for name in sorted(topics))
    try:
        return Path(input).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"-i {input} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"-i {input} is not text in UTF-8 (byte {error.start:,})") from error


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    width = max(len(row["name"]) for row in rows)
    yield f"{'':{width}}{'weights':>12}{'perplexity':>12}{'of the first':>14}{'same best token':>17}"
    for at, row in enumerate(rows):
        beside = f"{row['ratio']:>13.4f}x{row['agreement']:>16.1%}" if at else ""
        yield f"{row['name']:{width}}{format_bytes(row['bytes']):>12}{row['perplexity']:>12.3f}{beside}"
