"""What compute and disk lose to each other when both are busy, as in a sweep that streams."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from statistics import fmean, median

import torch

from penstock.engine.linear import Widening
from penstock.machine.machine import Link
from penstock.model.pages import Extent
from penstock.profiling.disk import Loaded, jitter, link_of_pages, page_times, streamers
from penstock.profiling.place import Place
from penstock.profiling.traffic import LayerRest

TOKENS, WIDTH = 64, 2048  # as a decode call has: of a call of many tokens reading takes a smaller part
_PRODUCTS = 7  # of a layer
_ROUND_S = 1.5  # of all three, so that what a disk or a neighbour does in the meantime meets them alike
_LEAST_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Together:
    """read: of the disk alone; its jitter is of pages that come beside products, as in runs. compute_loses, disk_loses:
    the parts of their speed while the other is busy."""

    read: Link
    compute_loses: float
    disk_loses: float


@torch.inference_mode()
def measure_together(
    place: Place, extents: Sequence[Extent], budget_s: float, tokens: int = TOKENS, width: int = WIDTH
) -> Together:
    """A layer's compute alone, pages alone, and both, in turn; each against itself alone in the same rounds."""
    layer = _layer(place, tokens, width)
    layer()
    rounds = max(_LEAST_ROUNDS, round(budget_s / _ROUND_S))
    share_s = budget_s / (3 * rounds)
    layers: dict[str, list[float]] = {"alone": [], "beside": []}
    pages: dict[str, list[list[Loaded]]] = {"alone": [], "beside": []}
    with streamers(extents) as streams:
        large = streams[0]  # small pages would have come before a layer is done that could ask for others
        for _, stream in zip(range(rounds), cycle(streams), strict=False):
            layers["alone"].append(_each_s(layer, share_s))
            pages["alone"].append(stream.window(share_s))
            stream.pause()
            layers["beside"].append(_each_s(layer, share_s, large.step))
            pages["beside"].append(large.pause())
    compute_loses = lost(*(1 / median(layers[how]) for how in ("alone", "beside")))
    alone, beside = (page_times(pages[how]) for how in ("alone", "beside"))
    slower = [lost(1 / alone[size], 1 / beside[size]) for size in alone.keys() & beside.keys()]
    read = replace(link_of_pages(pages["alone"]), jitter=jitter(pages["beside"]))
    return Together(read, compute_loses, fmean(slower) if slower else 0.0)


def _each_s(work: Callable[[], None], budget_s: float, between: Callable[[], None] = lambda: None) -> float:
    """Mean seconds of one, of as many as take so long, and of what is done between them."""
    start, runs = time.perf_counter(), 0
    while not runs or time.perf_counter() - start < budget_s:
        work()
        between()
        runs += 1
    return (time.perf_counter() - start) / runs


def lost(alone: float, beside: float) -> float:
    """The part of a rate that is lost; none where it grew, which is noise."""
    return max(0.0, 1 - beside / alone)


def _layer(place: Place, tokens: int, width: int) -> Callable[[], None]:
    """Products as runs here make them, with another matrix each time, and what is done between them.

    Reading takes more from the latter: it is small operations, many of them, each called from Python.
    """
    auto = place.auto
    count = place.copies(width * width * auto.stored.itemsize)
    in_turn = cycle(place.noise(count * width * width, auto.stored).view(count, width, width))
    hidden = place.noise(tokens * width, auto.compute).view(1, tokens, width)
    widening, rest = Widening(auto.compute, place.device.torch_device), LayerRest(place, tokens, width, 2 * width)

    def layer() -> None:
        for _ in range(_PRODUCTS):
            widening.linear(hidden, next(in_turn), None)
        rest.compute()
        place.settle()

    return layer
