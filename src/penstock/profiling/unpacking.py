"""Elements of 4 bits unpacked per second, as the engine does it: the price of packed KV, and of weights that no product
unpacks."""

import torch

from penstock.profiling.place import Place
from penstock.profiling.timing import median_s
from penstock.quant.grouped import Grouped
from penstock.quant.packed import Packed

ELEMENTS = 4 << 20  # of a matrix
_COLUMNS = 4096
_FORM = Grouped(4)


@torch.inference_mode()
def measure_unpacking(place: Place, budget_s: float, elements: int = ELEMENTS) -> float:
    """Elements per second, into the dtype that products are computed in."""
    rows = max(1, elements // _COLUMNS)
    # whatever bytes: unpacking takes as long for any numbers that are finite, which zeros are
    data = place.device.alloc(rows * _FORM.row_bytes(_COLUMNS)).zero_().view(rows, -1)
    packed = Packed(_FORM, _COLUMNS, data)
    target = torch.empty(packed.shape, dtype=place.auto.compute, device=data.device)

    def unpack() -> None:
        packed.write(target)
        place.settle()

    return rows * _COLUMNS / median_s(unpack, budget_s)
