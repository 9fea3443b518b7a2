"""Elements of 4 bits unpacked per second, as torch does it: what a plan with packed weights or KV has to pay."""

import torch

from penstock.profiling.place import Place
from penstock.profiling.timing import median_s

ELEMENTS = 4 << 20  # of a matrix
GROUP = 64  # elements that share a scale and a zero, as plans count their bytes


@torch.inference_mode()
def measure_unpacking(place: Place, budget_s: float, elements: int = ELEMENTS) -> float:
    """Elements per second, in the dtype that products are computed in; two to a byte, a scale and a zero per group."""
    groups = elements // GROUP
    packed = place.noise(groups * GROUP // 4, torch.float16).view(torch.uint8).view(groups, GROUP // 2)
    scale, zero = (place.noise(groups, torch.float16).view(groups, 1, 1) for _ in range(2))
    wide = place.device.alloc(elements * place.auto.compute.itemsize).view(place.auto.compute)
    target = wide.view(groups, GROUP // 2, 2)

    def unpack() -> None:
        target[..., 0].copy_(packed & 15)
        target[..., 1].copy_(packed >> 4)
        target.mul_(scale).add_(zero)
        place.settle()

    return elements / median_s(unpack, budget_s)
