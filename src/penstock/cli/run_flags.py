"""The flags of a run, declared once for all commands that generate."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from penstock.asked import asked_for, check_here
from penstock.bits import asked_bits, check_planned
from penstock.cli import options
from penstock.cli.overwrites import refuse_overwriting

Flags = Mapping[str, Any]

SAMPLING = {
    "temperature": options.Temperature,
    "top_p": options.TopP,
    "top_k": options.TopK,
    "seed": options.Seed,
    "max_tokens": options.MaxTokens,
    "stop": options.Stop,
    "ignore_eos": options.IgnoreEos,
}
HOW = {
    "trace": options.Trace,
    "gpu_memory": options.GpuMemory,
    "cpu_memory": options.CpuMemory,
    "disk_memory": options.DiskMemory,
    "offload_dir": options.OffloadDir,
    "weights": options.Weights,
    "kv": options.Kv,
    "activations": options.Activations,
    "attention": options.Attention,
    "compute_cpu_layers": options.ComputeCpuLayers,
    "rows": options.Rows,
    "sweep_tokens": options.SweepTokens,
    "batch_tokens": options.BatchTokens,
    "slots": options.Slots,
    "batch_size": options.BatchSize,
    "num_batches": options.NumBatches,
    "plan": options.SavedPlan,
    "dtype": options.Dtype,
    "weight_bits": options.WeightBits,
    "lm_head_bits": options.LmHeadBits,
    "kv_bits": options.KvBits,
    "allow_4bit": options.Allow4Bit,
    "device": options.Device,
    "random_weights": options.RandomWeights,
    "trust_remote_code": options.TrustRemoteCode,
    "unchecked": options.Unchecked,
}
_DEFAULTS = {"dtype": "auto", "device": "auto", "attention": "auto"} | dict.fromkeys(
    ("ignore_eos", "allow_4bit", "random_weights", "trust_remote_code", "unchecked"), False
)


def run_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the flags of a run, which it gets as two mappings.

    sampling: keywords of SamplingParams, None where nothing was said. how: keywords of LLM. UserError where flags of
    placement, cut or bits cannot be, a plan is none, or there is no place for files on disk or for the trace, or only
    that of another file.
    """

    def called(**given: Any) -> None:
        from penstock.memory.clock import check_trace
        from penstock.memory.offload import offload_root

        said = {name: given.pop(name) for name in SAMPLING}
        how = {name: given.pop(name) for name in HOW}
        # before libraries are imported, which takes seconds
        asked = asked_for(**_of(asked_for, how))
        check_planned(asked_bits(**_of(asked_bits, how)), asked, how["plan"])
        if how["trace"] is not None:
            check_trace(how["trace"])
            files = {"-i": "input", "-o": "output", "MODEL": "model"}
            read = {name: given.get(argument) for name, argument in files.items()}
            refuse_overwriting({"--trace": how["trace"]}, {**read, "--plan": how["plan"]})
        placed = None
        if how["plan"] is not None:
            from penstock.plan.saved import saved_plan

            placed = saved_plan(Path(how["plan"]), asked).placement
        check_here(asked, {"gpu": how["gpu_memory"]}, how["device"], placed)
        if how["offload_dir"] is not None:
            offload_root(how["offload_dir"])
        sampling = {name: None if value is False or value == [] else value for name, value in said.items()}
        command(**given, sampling=sampling, how=how)

    own = [p for p in inspect.signature(command).parameters.values() if p.name not in ("sampling", "how")]
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS.get(name), annotation=kind)
        for name, kind in (SAMPLING | HOW).items()
    ]
    # typer reads both
    called.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]  # functions may have one
    called.__annotations__ = {p.name: p.annotation for p in (*own, *flags)}
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    return called


def _of(function: Callable[..., Any], how: Flags) -> Flags:
    """Those of the flags that a function takes."""
    return {name: how[name] for name in inspect.signature(function).parameters}
