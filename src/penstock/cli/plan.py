"""``penstock plan``: where every byte goes, how fast a job will be and what limits it, before anything is loaded."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from penstock.asked import asked_for
from penstock.bits import Bits, asked_bits
from penstock.cli import options, plan_options
from penstock.cli.console import Display, stderr_display, width_of
from penstock.cli.overwrites import refuse_overwriting
from penstock.cli.plan_checks import check_explained, check_job, check_no_disk, check_outputs, check_where
from penstock.errors import UserError
from penstock.plan.policy import Tier
from penstock.plan.question import Question
from penstock.units import parse_bytes

if TYPE_CHECKING:
    from penstock.cli.plan_table import Line
    from penstock.plan.plan import Plan

EXAMPLES = """\
Examples:
  penstock plan demo
  penstock plan Qwen/Qwen3-30B-A3B -i questions.jsonl --cpu-memory 16GiB
  penstock plan ./llama-70b/config.json --machine a100-80 --plot plan.html
  penstock plan ./llama-70b --weights gpu=20%,cpu=80% --batch-size 48 --num-batches 3
  penstock plan ./llama-70b --explain paging
"""


def plan(
    model: plan_options.PlanModel = None,
    input: plan_options.PlanInput = None,
    prompt_len: plan_options.PromptLen = None,
    gen_len: plan_options.GenLen = None,
    num_prompts: plan_options.NumPrompts = None,
    objective: plan_options.Objective = None,
    max_seconds: plan_options.MaxSeconds = None,
    max_token_seconds: plan_options.MaxTokenSeconds = None,
    machine: plan_options.MachineName = None,
    cost_model: plan_options.CostModel = "penstock",
    instance: plan_options.Instance = None,
    save: plan_options.Save = None,
    plot: plan_options.Plot = None,
    explain: plan_options.Explain = None,
    json_: options.Json = False,
    gpu_memory: options.GpuMemory = None,
    cpu_memory: options.CpuMemory = None,
    disk_memory: options.DiskMemory = None,
    offload_dir: options.OffloadDir = None,
    weights: options.Weights = None,
    kv: options.Kv = None,
    activations: options.Activations = None,
    no_disk: plan_options.NoDisk = False,
    attention: options.Attention = "auto",
    compute_cpu_layers: options.ComputeCpuLayers = None,
    weight_bits: options.WeightBits = None,
    allow_4bit: options.Allow4Bit = False,
    lm_head_bits: options.LmHeadBits = None,
    kv_bits: options.KvBits = None,
    rows: options.Rows = None,
    sweep_tokens: options.SweepTokens = None,
    batch_tokens: options.BatchTokens = None,
    slots: options.Slots = None,
    batch_size: options.BatchSize = None,
    num_batches: options.NumBatches = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Say where every byte of a job goes, how fast it will be and what limits it; nothing is loaded.

    With placement or cut given, that policy is priced instead of searched, also where it does not fit.
    """
    if instance is not None:
        _solve(instance, model, json_)
        return
    if model is None:
        raise UserError("plan needs a MODEL (or --instance FILE alone)")
    asked = asked_for(
        weights=weights,
        kv=kv,
        activations=activations,
        rows=rows,
        sweep_tokens=sweep_tokens,
        batch_tokens=batch_tokens,
        slots=slots,
        batch_size=batch_size,
        num_batches=num_batches,
        attention=attention,
        compute_cpu_layers=compute_cpu_layers,
    )
    if no_disk:
        check_no_disk({"--weights": weights, "--kv": kv, "--activations": activations}, disk_memory)
    budgets = _budgets(gpu_memory, cpu_memory, disk_memory)
    check_outputs(save, plot)
    refuse_overwriting({"--save": save, "--plot": plot}, {"-i": input, "MODEL": model, "--machine": machine})
    bits = asked_bits(weight_bits, lm_head_bits, kv_bits, allow_4bit)
    if explain is not None:
        check_explained(explain, asked, bits, save, plot)
    check_job(input, prompt_len, num_prompts)
    aim = _aim(objective, max_seconds, max_token_seconds)
    check_where(asked, budgets, machine, device)
    display = stderr_display(json_)
    try:
        question = Question(
            **_job(model, input, prompt_len, gen_len, num_prompts, trust_remote_code, display),
            **aim,
            gpu_memory=budgets["gpu"],
            cpu_memory=budgets["cpu"],
            disk_memory=budgets["disk"],
            asked=asked,
            no_disk=no_disk,
            machine=machine,
            cost_model="flexgen" if cost_model == "flexgen" else "penstock",
            weight_bits=bits.weight_bits,
            lm_head_bits=bits.lm_head_bits,
            kv_bits=bits.kv_bits,
            dtype=dtype,
            device=device,
            offload_dir=offload_dir,
            trust_remote_code=trust_remote_code,
        )
        if explain is not None:
            _explain(model, question, json_, display)
            return
        made = _made(model, question, bits, display)
    finally:
        display.close()
    _print(made, json_)
    if plot is not None:
        from penstock.cli.plan_figure import draw

        draw(made, Path(plot))
    if save is not None:
        settled = replace(question, weight_bits=made.policy.weight_bits, kv_bits=made.policy.kv_bits)
        _save(made, model, settled, Path(save), stderr_display(json_))


def _solve(instance: str, model: str | None, as_json: bool) -> None:
    if model is not None:
        raise UserError(f"--instance {instance} is a problem of its own: leave {model} out")
    from penstock.cli.plan_instance import run_instance

    run_instance(Path(instance), as_json)


def _made(model: str, question: Question, bits: Bits, display: Display) -> "Plan":
    if bits.free:
        from penstock.free_bits import plan_of_free_bits

        return plan_of_free_bits(model, question, bits, display.show)
    from penstock.planner import make_plan

    return make_plan(model, question, display.show)


def _job(
    model: str,
    input: str | None,
    prompt_len: int | None,
    gen_len: int | None,
    num_prompts: int | None,
    trust_remote_code: bool,
    display: Display,
) -> dict[str, Any]:
    """Fields of the question that say what is generated."""
    given = {"prompt_len": prompt_len, "gen_len": gen_len, "num_prompts": num_prompts}
    said = {name: value for name, value in given.items() if value is not None}
    if input is None:
        return said
    from penstock.cli.plan_lengths import prompts_of

    def note(text: str) -> None:
        display.show({"kind": "note", "text": text})

    prompts = prompts_of(input, model, said.get("gen_len", Question().gen_len), trust_remote_code, note)
    return {**said, "lengths": prompts.lengths, "prompts": prompts.ids, "num_prompts": len(prompts.lengths)}


def _aim(objective: str | None, max_seconds: float | None, max_token_seconds: float | None) -> dict[str, Any]:
    """Fields of the question that say what is best."""
    bounds = {"--max-seconds": max_seconds, "--max-token-seconds": max_token_seconds}
    given = {flag: seconds for flag, seconds in bounds.items() if seconds is not None}
    for flag, seconds in given.items():
        if not (math.isfinite(seconds) and seconds > 0):
            raise UserError(f"{flag} {seconds:g}: give a number of seconds above 0")
        if objective == "throughput":
            raise UserError(f"{flag} {seconds:g} bounds latency: use --objective latency with it")
    aim = objective or ("latency" if given else "throughput")
    return {"objective": aim, "latency_s": max_seconds, "token_s": max_token_seconds}


def _budgets(gpu_memory: str | None, cpu_memory: str | None, disk_memory: str | None) -> dict[Tier, int | None]:
    given: dict[Tier, str | None] = {"gpu": gpu_memory, "cpu": cpu_memory, "disk": disk_memory}
    return {tier: None if size is None else parse_bytes(size, f"--{tier}-memory") for tier, size in given.items()}


def _print(made: "Plan", as_json: bool) -> None:
    if as_json:
        from penstock.cli.plan_json import record

        print(json.dumps(record(made)))
        return
    from penstock.cli.plan_table import table

    _echo(table(made, width_of(sys.stdout)))


def _echo(lines: "Sequence[Line]") -> None:
    for line in lines:
        typer.secho(line.text, dim=line.dim or None)


def _explain(model: str, question: Question, as_json: bool, display: Display) -> None:
    """The ways to move layers, at the job's mean context, with as many rows as the fast tier holds."""
    from penstock.cli.plan_json import paging_record
    from penstock.cli.plan_paging import paging_table
    from penstock.plan.paged import paged
    from penstock.plan.paging import compare, rows_held
    from penstock.planner import shape_and_machine

    lengths = question.requests
    context = sum(prompt + new // 2 for prompt, new in lengths) // len(lengths)
    shape, machine = shape_and_machine(model, question, display.show)
    layers = paged(shape, machine, context, question.budgets)
    ways = compare(layers, question.asked.rows or min(rows_held(layers), len(lengths)))
    display.close()
    if as_json:
        print(
            json.dumps({"model": shape.name, "machine": machine.name, "paging": paging_record(layers, ways, context)})
        )
    else:
        _echo(list(paging_table(shape.name, machine.name, layers, ways, context)))


def _save(made: "Plan", model: str, question: Question, path: Path, display: Display) -> None:
    from penstock.model.fingerprint import fingerprint
    from penstock.plan.saved import save_plan
    from penstock.planner import planned_source, shape_of

    found = planned_source(model, question.trust_remote_code)
    save_plan(made, fingerprint(found), sum(shape_of(model, question).footprint.pages), path)
    if found.kind == "random":
        display.show({"kind": "note", "text": f"{path} is of a config alone: it runs with --random-weights only"})
