"""The flags that commands share, and how help shows them."""

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from penstock.bits import check_bits
from penstock.model.names import check_name
from penstock.units import parse_bytes

INTERRUPTED = 130  # exit status: 128 + SIGINT, as shells say it


class Stopped(Exception):
    """A command that ended before its end and has said so; the process ends with ``status``."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


MODEL = "Model"
MEMORY = "Memory (sizes such as 12GiB, 500MB)"
PLACEMENT = "Placement (shares such as gpu=20%,cpu=50%,disk=30%)"
CUT = "How the work is cut"
SAMPLING = "Sampling"
OUTPUT = "Input and output"

_PACK_WEIGHTS = "pack the layers' weights in 4 or 8 bits, in groups of 64; 16 leaves them as they are (default)"
_PACK_KV = "pack keys and values in 4 or 8 bits, but each row's newest (up to 64 tokens); 16 leaves them (default)"


def one_of(*names: str, hidden: tuple[str, ...] = (), optional: bool = False) -> Callable[[Any], Any]:
    """A check that a flag is one of these names; hidden: others that are taken and not told of."""

    def check(value: str | None) -> str | None:
        if value not in names + hidden and not (optional and value is None):
            raise typer.BadParameter(f"{value!r} is none of {', '.join(names)}")
        return value

    return check


def option(panel: str, flag: str, help: str, **more: Any) -> Any:
    """A flag under a panel of the help; short: its other names."""
    return typer.Option(flag, *more.pop("short", ()), help=help, rich_help_panel=panel, show_default=False, **more)


def size_option(flag: str, help: str) -> Any:
    """A flag that is a budget of memory."""

    def check(size: str | None) -> str | None:
        if size is not None:
            parse_bytes(size, flag)
        return size

    return option(MEMORY, flag, help, metavar="SIZE", callback=check)


def named_model(model: str | None) -> str | None:
    """The name of a model as it is, UserError where it is none's."""
    if model is not None:
        check_name(model)
    return model


def _layers(said: str) -> int | str:
    return int(said) if said.isdecimal() else said


def bits_option(flag: str, help: str, *, auto: bool = False) -> Any:
    """A flag that is a number of bits, or ``auto`` where the planner may choose."""

    def read(said: str) -> int | str:
        if auto and said == "auto":
            return said
        bits = int(said) if said.isdecimal() else said
        check_bits(bits, flag, auto=auto)
        return bits

    told = f"{help}; auto: 8 where that is faster" if auto else help
    return option(MODEL, flag, told, metavar="N", parser=read)


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="a Hugging Face directory, a GGUF file, a hub id, or demo",
        show_default=False,
        callback=named_model,
    ),
]
Prompts = Annotated[
    list[str] | None, typer.Argument(metavar="[PROMPT]...", help="texts to go on from", show_default=False)
]

Dtype = Annotated[
    str,
    option(
        MODEL,
        "--dtype",
        "auto (the checkpoint's, where the device computes it), bfloat16, float16 or float32",
        metavar="NAME",
        callback=one_of("auto", "bfloat16", "float16", "float32"),
    ),
]
FixedWeightBits = Annotated[int | None, bits_option("--weight-bits", _PACK_WEIGHTS)]
FixedKvBits = Annotated[int | None, bits_option("--kv-bits", _PACK_KV)]
WeightBits = Annotated[Any, bits_option("--weight-bits", _PACK_WEIGHTS, auto=True)]  # typer knows no union
KvBits = Annotated[Any, bits_option("--kv-bits", _PACK_KV, auto=True)]
LmHeadBits = Annotated[
    int | None, bits_option("--lm-head-bits", "pack the LM head too, and an embedding that it is tied to")
]
Allow4Bit = Annotated[
    bool, option(MODEL, "--allow-4bit", "let --weight-bits auto and --kv-bits auto take 4 bits too, where faster")
]
Device = Annotated[
    str,
    option(
        MODEL,
        "--device",
        "what computes: auto (a GPU if there is one), cuda or cpu",
        metavar="NAME",
        callback=one_of("auto", "cuda", "cpu", hidden=("emulated",)),
    ),
]
RandomWeights = Annotated[
    bool, option(MODEL, "--random-weights", "draw the weights instead of reading them; a config is enough")
]
TrustRemoteCode = Annotated[
    bool, option(MODEL, "--trust-remote-code", "run the Python code that comes with the checkpoint")
]
Unchecked = Annotated[
    bool, option(MODEL, "--unchecked", "skip the check that this model's answers are exact (they may be wrong)")
]

GpuMemory = Annotated[str | None, size_option("--gpu-memory", "at most this much of the GPU (default: what is free)")]
CpuMemory = Annotated[
    str | None,
    size_option(
        "--cpu-memory", "at most this much for the whole process, interpreter included (default: what is free)"
    ),
]
DiskMemory = Annotated[str | None, size_option("--disk-memory", "at most this much for files of penstock's own")]
OffloadDir = Annotated[
    str | None,
    option(MEMORY, "--offload-dir", "where KV and activations on disk go (default: the user's cache)", metavar="DIR"),
]

Weights = Annotated[
    str | None, option(PLACEMENT, "--weights", "where weights rest; those on disk are streamed", metavar="SHARES")
]
Kv = Annotated[str | None, option(PLACEMENT, "--kv", "where the KV cache rests", metavar="SHARES")]
Activations = Annotated[
    str | None, option(PLACEMENT, "--activations", "where suspended micro-batches wait", metavar="SHARES")
]

Attention = Annotated[
    str,
    option(
        PLACEMENT,
        "--attention",
        "which processor attends to KV that rests below a gpu: cpu, gpu or auto (default)",
        metavar="NAME",
        callback=one_of("auto", "cpu", "gpu"),
    ),
]
ComputeCpuLayers = Annotated[
    Any,
    option(
        PLACEMENT,
        "--compute-cpu-layers",
        "beside a gpu, compute the first N decoder layers on the cpu, where they and all KV rest; sweeps of many tokens"
        " bring them up all the same; auto: as many as make it faster, if any",
        metavar="N",
        parser=_layers,
    ),
]
Rows = Annotated[int | None, option(CUT, "--rows", "sequences in flight at most", metavar="N", min=1)]
SweepTokens = Annotated[
    int | None, option(CUT, "--sweep-tokens", "tokens of one pass over the weights at most", metavar="N", min=1)
]
BatchTokens = Annotated[
    int | None, option(CUT, "--batch-tokens", "tokens of one forward call at most", metavar="N", min=1)
]
Slots = Annotated[
    int | None, option(CUT, "--slots", "pages in the streaming ring; 1: load, then compute", metavar="N", min=1)
]
SavedPlan = Annotated[
    str | None,
    option(CUT, "--plan", "run a plan that penstock plan --save wrote, exactly", metavar="F"),
]
BatchSize = Annotated[
    int | None,
    option(CUT, "--batch-size", "FlexGen's form: rows of a micro-batch, with --num-batches", metavar="N", min=1),
]
NumBatches = Annotated[
    int | None,
    option(CUT, "--num-batches", "micro-batches that enter together, with --batch-size", metavar="N", min=1),
]

Temperature = Annotated[
    float | None, option(SAMPLING, "--temperature", "0 is greedy (default: the model's own, or 0)", metavar="X")
]
TopP = Annotated[
    float | None, option(SAMPLING, "--top-p", "draw from the likeliest tokens up to this probability", metavar="X")
]
TopK = Annotated[int | None, option(SAMPLING, "--top-k", "draw from this many likeliest tokens", metavar="N")]
Seed = Annotated[int | None, option(SAMPLING, "--seed", "the same seed draws the same text (default: 0)", metavar="N")]
MaxTokens = Annotated[
    int | None, option(SAMPLING, "--max-tokens", "tokens to generate for a prompt at most (default: 256)", metavar="N")
]
Stop = Annotated[list[str] | None, option(SAMPLING, "--stop", "end at this text; may be repeated", metavar="TEXT")]
IgnoreEos = Annotated[bool, option(SAMPLING, "--ignore-eos", "go on past the end-of-text token")]

Input = Annotated[
    str | None,
    option(
        OUTPUT,
        "--input",
        'prompts from a file: one a line, or .jsonl lines of {"prompt"}, {"messages"} or {"prompt_token_ids"};'
        " - is standard input",
        metavar="FILE",
        short=("-i",),
    ),
]
NoChat = Annotated[
    bool, option(OUTPUT, "--no-chat", "give prompts to the model as they are, without its chat template")
]
Json = Annotated[bool, option(OUTPUT, "--json", "print one JSON value; progress goes to stderr as JSON lines")]
Trace = Annotated[
    str | None, option(OUTPUT, "--trace", "write what every lane did when, for Perfetto or Chrome", metavar="FILE")
]


class Command(TyperCommand):
    """A command whose help groups options under their panel's title in plain text (rich would double its start)."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments as they are typed."""
        arguments = [str(parameter.metavar) for parameter in self.get_params(ctx) if _is_argument(parameter)]
        formatter.write_usage(ctx.command_path, " ".join([*arguments, "[OPTION]..."]))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then each panel of options."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record, help = parameter.get_help_record(ctx), getattr(parameter, "help", None)
            panel = getattr(parameter, "rich_help_panel", None)
            if _is_argument(parameter):
                panels.setdefault("Arguments", []).append((str(parameter.metavar), help or ""))
            elif record and panel:
                panels.setdefault(panel, []).append((record[0], help or ""))
        for title, records in panels.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=26)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples as they stand."""
        if self.epilog:
            formatter.write(f"\n{self.epilog}")


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


HELP = {"max_content_width": 100, "help_option_names": ["-h", "--help"]}
