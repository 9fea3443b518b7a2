"""A machine as a planner sees it: memory per tier, links between tiers, and what its processors compute per second.

Integers and floats only, in bytes, seconds and FLOP; measured on this host, written by hand, or a preset.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from penstock.plan.policy import Tier

LinkName = Literal["disk→cpu", "cpu→gpu", "gpu→cpu", "cpu→disk"]


@dataclass(frozen=True, slots=True)
class Curve:
    """A rate that depends on a size: measured (size, rate) points in ascending order of size.

    Between points the rate is interpolated in the logarithms of both; beyond them it is that of the nearest.
    """

    points: tuple[tuple[float, float], ...]

    def at(self, size: float) -> float:
        """The rate at a size."""
        sizes = [point[0] for point in self.points]
        after = bisect_left(sizes, size)
        if after == 0:
            return self.points[0][1]
        if after == len(sizes):
            return self.points[-1][1]
        (low, slow), (high, fast) = self.points[after - 1], self.points[after]
        part = math.log(size / low) / math.log(high / low)
        return float(slow * (fast / slow) ** part)

    @classmethod
    def flat(cls, rate: float) -> "Curve":
        """The same rate at every size."""
        return cls(((1.0, rate),))


@dataclass(frozen=True, slots=True)
class Link:
    """A directed path between two tiers. latency_s: of one transfer, before its first byte.

    staging_bytes_per_s: at which KV is first copied to where the link can fetch it, by the thread that else launches
    the layers' products. Infinite where KV rests there already, as pinned memory. kv_bytes_per_s: of KV blocks, which
    are small and in no order; None where that makes no difference. jitter: how far a page's time lies from the mean
    time, as a part of it and in the mean.
    """

    bytes_per_s: float
    latency_s: float = 0.0
    staging_bytes_per_s: float = math.inf
    kv_bytes_per_s: float | None = None
    jitter: float = 0.0

    def seconds(self, nbytes: float, transfers: int = 1) -> float:
        """Time to carry so many bytes in so many transfers."""
        return nbytes / self.bytes_per_s + transfers * self.latency_s if nbytes > 0 else 0.0

    def kv_seconds(self, nbytes: float) -> float:
        """Time to carry so many bytes of KV blocks."""
        return nbytes / (self.kv_bytes_per_s or self.bytes_per_s)


@dataclass(frozen=True, slots=True)
class Processor:
    """What one place computes.

    products: FLOP/s of a linear layer by the tokens of a call, per arithmetic: ``bfloat16``, or
    ``float32<bfloat16`` where float32 activations meet weights that are stored in bfloat16 and widened inside the
    product, or ``float32<int4`` where they are packed in so many bits and unpacked there, as in ``bfloat16<int4``.
    attention: FLOP/s by the query tokens of a span (1 in decode), both products of it counted. kv_bytes_per_s: at
    which attention reads keys and values, whatever the arithmetic. activation_bytes_per_s: at which everything else
    between two products (norms, rotary turns, activation functions, residual sums) reads and writes its tensors.
    dequantise_per_s: elements of packed weights or KV that are unpacked in a second.
    product_s: of a product besides its FLOP, per arithmetic, where that is not counted with the page: handing it to
    threads, and what of a small matrix one of them does alone.
    attention_row_s: of a row and layer in decode, whatever its keys.
    fresh_bytes_per_s: at which memory is written to for the first time since the system gave it.
    visit_s: of a call at a page, whatever its size. sweep_s: of a sweep. row_s: of a sampled row besides its logits.
    logit_s: of one logit of a sampled row. expert_s: of an expert that tokens of a call are sent to, besides its
    products.
    """

    products: Mapping[str, Curve]
    attention: Curve
    kv_bytes_per_s: float
    activation_bytes_per_s: float
    dequantise_per_s: float = math.inf
    visit_s: float = 0.0
    sweep_s: float = 0.0
    row_s: float = 0.0
    logit_s: float = 0.0
    expert_s: float = 0.0
    product_s: Mapping[str, float] = field(default_factory=dict)
    attention_row_s: float = 0.0
    fresh_bytes_per_s: float = math.inf

    def curve(self, arithmetic: str) -> Curve:
        """The rates of an arithmetic's products, or of the nearest that is known here."""
        for name in (arithmetic, arithmetic.partition("<")[0], "float16", "bfloat16"):
            if name in self.products:
                return self.products[name]
        return next(iter(self.products.values()))


@dataclass(frozen=True, slots=True)
class Machine:
    """Tiers, links and processors.

    memory: bytes per tier; a tier that is absent is not there. processors: by the tier whose memory they compute on.
    compute_loses, disk_loses: the part of its speed that the cpu's compute, and a read from disk, loses while the other
    runs. source: where each number comes from, by a dotted name (``links.disk→cpu``), for people.
    """

    name: str
    memory: Mapping[Tier, int]
    links: Mapping[LinkName, Link]
    processors: Mapping[Tier, Processor]
    compute_loses: float = 0.0
    disk_loses: float = 0.0
    source: Mapping[str, str] = field(default_factory=dict)

    @property
    def compute(self) -> Tier:
        """The tier that computes layers: the gpu where there is one."""
        return "gpu" if "gpu" in self.processors else "cpu"
