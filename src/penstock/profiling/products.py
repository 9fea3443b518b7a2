"""FLOP/s of linear layers by the tokens of a call, through the very product that the engine runs."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from statistics import fmean

import torch

from penstock.cuda.trial import FEW
from penstock.engine.linear import Widening
from penstock.machine.machine import Curve
from penstock.profiling.place import Arithmetic, Place
from penstock.profiling.timing import median_s
from penstock.quant.grouped import Grouped
from penstock.quant.packed import Packed

# 3 and 4: from there on another kernel widens weights, several times as fast, and nothing between may be interpolated.
# 40 and 72: beyond whole tiles of a kernel, where experts' tokens mostly fall.
SHORT_TOKENS = (1, 2, 3, 4, 8, 16, 32, 40, 64, 72, 128, 256, 512, 1024)
# Packed weights are measured in the long form alone, and on CUDA another kernel takes them from FEW + 1 on.
LONG_TOKENS = (*sorted({*SHORT_TOKENS, FEW + 1}), 4096)
WIDTH = 4096  # in and out: between the projections of small models and the MLPs of large ones
_LEAST_WIDTH = 512
_STARTED = (8, 64)  # tokens of products whose beginning is told: few, and as many as rows of a decode sweep
_LONGER = 3  # than its part a product may take: fewer outputs cost a little of its rate, since activations are packed


def measure_products(
    place: Place, arithmetics: Sequence[Arithmetic], tokens: Sequence[int], budget_s: float, width: int = WIDTH
) -> Mapping[str, Curve]:
    """A curve for each arithmetic, of square matrices that are not in cache when their turn comes.

    width: theirs, halved where there is no room for two of them.
    """
    while 2 * width * width * 4 > place.room_bytes and width > _LEAST_WIDTH:
        width //= 2
    share_s = budget_s / len(arithmetics)
    return {kind.name: product_curve(place, kind, tokens, share_s, width) for kind in arithmetics}


def measure_starts(
    place: Place, arithmetics: Sequence[Arithmetic], curves: Mapping[str, Curve], budget_s: float
) -> Mapping[str, float]:
    """Seconds of a product besides its FLOP: what small matrices take more than large ones' rates say.

    curves: of large ones, by the arithmetic's name.
    """
    share_s = budget_s / len(arithmetics)
    starts = {}
    for kind in arithmetics:
        small, large = product_curve(place, kind, _STARTED, share_s, _LEAST_WIDTH), curves[kind.name]
        flop = [(2 * tokens * _LEAST_WIDTH**2, tokens) for tokens, _ in small.points]
        starts[kind.name] = fmean(max(0.0, n / small.at(tokens) - n / large.at(tokens)) for n, tokens in flop)
    return starts


@torch.inference_mode()
def product_curve(
    place: Place, arithmetic: Arithmetic, tokens: Sequence[int], budget_s: float, width: int = WIDTH
) -> Curve:
    """One arithmetic's FLOP/s by tokens, in ascending order.

    A size whose product would take several times its part of the time is measured with fewer of the outputs; one that
    would still take longer than all is left out.
    """
    weights = _matrices(place, arithmetic.stored, width)
    widening = Widening(arithmetic.compute, place.device.torch_device)
    in_turn, share_s = cycle(weights), budget_s / len(tokens)
    points: list[tuple[float, float]] = []

    def measured(number: int, outputs: int, seconds: float) -> float:
        hidden = place.noise(number * width, arithmetic.compute).view(1, number, width)

        def product() -> None:
            widening.linear(hidden, next(in_turn)[:outputs], None)
            place.settle()

        return 2.0 * number * width * outputs / median_s(product, seconds)

    for number in tokens:
        fastest = max((rate for _, rate in points), default=math.inf)
        each_s, outputs = 2.0 * number * width / fastest, width
        while outputs > _LEAST_WIDTH and each_s * outputs > _LONGER * share_s:
            outputs //= 2
        if each_s * outputs > budget_s:
            break
        points.append((float(number), measured(number, outputs, share_s)))
    return Curve(tuple(points))


def _matrices(place: Place, stored: torch.dtype | Grouped, width: int) -> Sequence[torch.Tensor | Packed]:
    """As many square matrices as are not in cache when their turn comes."""
    if isinstance(stored, torch.dtype):
        count = place.copies(width * width * stored.itemsize)
        return list(place.noise(count * width * width, stored).view(count, width, width))
    row_bytes = stored.row_bytes(width)
    count = place.copies(width * row_bytes)
    # whatever bytes: a product takes as long for any numbers that are finite, which zeros are
    data = place.device.alloc(count * width * row_bytes).zero_().view(count, width, row_bytes)
    return [Packed(stored, width, matrix) for matrix in data]
