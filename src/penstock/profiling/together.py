"""What compute and disk lose to each other when both are busy, as in a sweep that streams."""

import time
from collections.abc import Callable, Sequence
from itertools import cycle

import torch

from penstock.engine.linear import Widening
from penstock.model.pages import Extent
from penstock.profiling.disk import Streamer
from penstock.profiling.place import Place
from penstock.profiling.timing import median_s

TOKENS, WIDTH = 256, 2048


@torch.inference_mode()
def measure_together(
    place: Place, pages: Sequence[Extent], budget_s: float, tokens: int = TOKENS, width: int = WIDTH
) -> tuple[float, float]:
    """The parts of their speed that compute and the disk lose, each against itself alone in the same minute."""
    product = _product(place, tokens, width)
    compute_alone_s = median_s(product, budget_s * 3 / 8)
    with Streamer(pages) as stream:
        stream.rate(budget_s / 16)
        disk_alone = stream.rate(budget_s * 3 / 16)
        start, before = time.perf_counter(), stream.nbytes
        compute_beside_s = median_s(product, budget_s * 3 / 8)
        disk_beside = (stream.nbytes - before) / (time.perf_counter() - start)
    return lost(1 / compute_alone_s, 1 / compute_beside_s), lost(disk_alone, disk_beside)


def lost(alone: float, beside: float) -> float:
    """The part of a rate that is lost; none where it grew, which is noise."""
    return max(0.0, 1 - beside / alone)


def _product(place: Place, tokens: int, width: int) -> Callable[[], None]:
    """A product as runs here make it, with another matrix each time."""
    auto = place.auto
    count = place.copies(width * width * auto.stored.itemsize)
    in_turn = cycle(place.noise(count * width * width, auto.stored).view(count, width, width))
    hidden = place.noise(tokens * width, auto.compute).view(1, tokens, width)
    widening = Widening(auto.compute, place.device.torch_device)

    def product() -> None:
        widening.linear(hidden, next(in_turn), None)
        place.settle()

    return product
