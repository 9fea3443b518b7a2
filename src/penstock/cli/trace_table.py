"""What a trace holds, as the lines of ``penstock trace info``."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from penstock.cli import figures
from penstock.units import format_bytes

if TYPE_CHECKING:
    from penstock.trace.info import TraceInfo


def table(info: "TraceInfo") -> Iterator[tuple[str, str]]:
    """The lines of the table: label, text."""
    header, shape = info.header, info.shape
    parameters = dict(header.parameters)
    mass_kept = parameters.pop("mass_kept", None)
    source = [header.rule] + [f"{name} {_said(value)}" for name, value in parameters.items()]
    if header.model:
        yield "model", header.model
    if header.prompt_hash:
        yield "prompt", header.prompt_hash
    yield "made by", " · ".join(source)
    layers, steps = figures.count(shape.layers, "layer"), figures.count(shape.steps, "step")
    yield "size", f"{steps} × {layers} after {shape.prefill_tokens:,} tokens"
    asked = "" if info.skip_asked is None else f" ({percent(info.skip_asked)} asked)"
    yield "skipped", f"{percent(info.skip)} of the tokens that exist{asked}"
    yield "", f"by layer {_spread(info.skip_of_layers)}"
    if isinstance(mass_kept, list) and mass_kept:
        yield "attention", f"{percent(sum(mass_kept) / len(mass_kept))} is on tokens that are read"
        yield "", f"by layer {_spread(mass_kept)}"
    if info.overlap is None:
        yield "overlap", "none: nothing is read twice"
    else:
        yield "overlap", f"{percent(info.overlap)} of what a step reads, the next one reads too"
        yield "", f"by layer {_spread(info.overlap_of_layers)}"
    if info.correlation is not None:
        yield "layers", f"neighbours skip alike: correlation {info.correlation:.2f}"
    yield "bytes", f"{format_bytes(info.coded_bytes)} for {format_bytes(info.raw_bytes)} of bits"


def percent(share: float) -> str:
    """A share to a tenth of a percent, which a realised level needs."""
    return f"{100 * share:.1f} %"


def _said(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def _spread(shares: Sequence[float | None]) -> str:
    """Where shares of layers lie: ``27.1 % (layer 3) to 31.0 % (layer 12), standard deviation 0.9 %``."""
    known = {layer: share for layer, share in enumerate(shares) if share is not None}
    low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    if percent(known[low]) == percent(known[high]):
        return f"{percent(known[low])} everywhere"
    mean = sum(known.values()) / len(known)
    deviation = (sum((share - mean) ** 2 for share in known.values()) / len(known)) ** 0.5
    ends = [f"{percent(known[layer])} (layer {layer})" for layer in (low, high)]
    return f"{ends[0]} to {ends[1]}, standard deviation {percent(deviation)}"
