"""Seconds of one layer's attention, on the tier that computes and on the cpu beside a gpu."""

from collections.abc import Sequence

from penstock.machine.machine import Machine, Processor
from penstock.plan.load import Load
from penstock.plan.policy import Policy
from penstock.plan.shape import AttentionShape

_UNPACKED_BYTES = 2  # of an element of KV that was packed


class Attending:
    """Attention under one policy."""

    def __init__(self, machine: Machine, policy: Policy) -> None:
        self._machine, self._kv = machine, policy.kv
        self._compute = machine.compute
        self._here = machine.processors[self._compute]
        beside = (policy.attention or self._compute) != self._compute and "cpu" in machine.processors
        self.away = 1.0 - policy.kv.of(self._compute) if beside else 0.0  # part of KV attended to on the cpu

    def seconds(self, layer: AttentionShape, loads: Sequence[Load]) -> tuple[float, float]:
        """Of one layer: on the compute tier, and on the cpu beside a gpu."""
        here = away = 0.0
        for load in loads:
            for spans in load.spans:
                flops = spans.pairs(layer.window) * layer.pair_flops
                keys = spans.keys(layer.window)
                on_cpu = self.away if spans.count == 1 else 0.0  # a prompt's keys are at hand where they were computed
                here += (1 - on_cpu) * self._attend_s(self._here, layer, flops, keys, spans.count)
                if on_cpu:
                    away += on_cpu * self._attend_s(self._machine.processors["cpu"], layer, flops, keys, spans.count)
        return here, away + self._staging_s(layer, loads)

    def past_bytes(self, layer: AttentionShape, loads: Sequence[Load]) -> float:
        """KV of earlier calls that one layer attends to, as it is stored."""
        past = sum(s.number * min(s.first, layer.window or s.first) for load in loads for s in load.spans)
        return past * layer.kv_bytes

    def _attend_s(
        self, processor: Processor, layer: AttentionShape, flops: float, keys: float, queries: float
    ) -> float:
        """Attention of spans alike to so many keys with their values, which are unpacked before, where they are packed.

        Packing what is new passes over it about as often as unpacking what is old, so both count as one.
        """
        unpack_s = keys * layer.packed_elements / processor.dequantise_per_s if layer.packed_elements else 0.0
        kv_bytes = keys * (_UNPACKED_BYTES * layer.packed_elements or layer.kv_bytes)
        return unpack_s + max(flops / processor.attention.at(queries), kv_bytes / processor.kv_bytes_per_s)

    def _staging_s(self, layer: AttentionShape, loads: Sequence[Load]) -> float:
        """Copies of KV on the cpu to where the link to the gpu can fetch it, while nothing else is launched."""
        share = self._kv.of("cpu")
        if self._compute != "gpu" or not share or self.away:
            return 0.0
        return share * self.past_bytes(layer, loads) / self._machine.links["cpu→gpu"].staging_bytes_per_s
