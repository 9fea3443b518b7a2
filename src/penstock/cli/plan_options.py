"""The flags that only ``penstock plan`` has."""

from typing import Annotated

import typer

from penstock.cli.options import OUTPUT, PLACEMENT, named_model, one_of, option

PLAN = "What is planned"

PlanModel = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="a Hugging Face directory or its config.json, a GGUF file, a hub id, or demo",
        show_default=False,
        callback=named_model,
    ),
]
PlanInput = Annotated[
    str | None,
    option(
        PLAN,
        "--input",
        "the job's own prompts, as run-batch takes them, or a text file with one on each line",
        metavar="FILE",
        short=("-i",),
    ),
]
PromptLen = Annotated[int | None, option(PLAN, "--prompt-len", "tokens of a prompt (default: 512)", metavar="N", min=1)]
GenLen = Annotated[
    int | None, option(PLAN, "--gen-len", "tokens to generate for each (default: 128)", metavar="N", min=1)
]
NumPrompts = Annotated[int | None, option(PLAN, "--num-prompts", "prompts (default: 1000)", metavar="N", min=1)]
Objective = Annotated[
    str | None,
    option(
        PLAN,
        "--objective",
        "throughput, the job's tokens per second (default), or latency, a row's time from start to end",
        metavar="NAME",
        callback=one_of("throughput", "latency", optional=True),
    ),
]
MaxSeconds = Annotated[
    float | None,
    option(
        PLAN,
        "--max-seconds",
        "a row may take this long from its first prompt token to its last; the most throughput within it",
        metavar="S",
    ),
]
MaxTokenSeconds = Annotated[
    float | None,
    option(
        PLAN,
        "--max-token-seconds",
        "a row may wait this long for each token; the most throughput within it",
        metavar="S",
    ),
]
MachineName = Annotated[
    str | None,
    option(PLAN, "--machine", "a preset's name or a machine file (default: this host)", metavar="NAME"),
]
CostModel = Annotated[
    str,
    option(
        PLAN,
        "--cost-model",
        "flexgen: tell beside it what the equations of FlexGen's paper say (default: penstock)",
        metavar="NAME",
        short=("--model",),
        callback=one_of("penstock", "flexgen"),
    ),
]
Instance = Annotated[
    str | None,
    option(PLAN, "--instance", "solve a bare linear program of given sizes and bandwidths, without MODEL", metavar="F"),
]
NoDisk = Annotated[bool, option(PLACEMENT, "--no-disk", "let nothing rest on disk")]
Save = Annotated[
    str | None,
    option(OUTPUT, "--save", "keep the plan in a file for generate --plan and run-batch --plan", metavar="F"),
]
Plot = Annotated[
    str | None, option(OUTPUT, "--plot", "draw it: a .png or .svg, or a .html page with its tables", metavar="FILE")
]
Explain = Annotated[
    str | None,
    option(
        OUTPUT,
        "--explain",
        "paging: compare the ways to move layers, for this model and machine, instead of planning",
        metavar="WHAT",
        callback=one_of("paging", optional=True),
    ),
]
