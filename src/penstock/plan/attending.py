"""Seconds of one layer's attention, on the tier that computes and on the cpu beside a gpu."""

from collections.abc import Sequence

from penstock.machine.machine import Machine, Processor
from penstock.plan.load import Load
from penstock.plan.policy import Policy
from penstock.plan.shape import AttentionShape

NATIVE_BITS = 16


class Attending:
    """Attention under one policy. kv_part: bytes of KV as stored, as a part of them unpacked."""

    def __init__(self, machine: Machine, policy: Policy, kv_part: float) -> None:
        self._machine, self._kv, self._kv_part = machine, policy.kv, kv_part
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
                read = spans.keys(layer.window) * layer.kv_bytes
                on_cpu = self.away if spans.count == 1 else 0.0  # a prompt's keys are at hand where they were computed
                here += (1 - on_cpu) * self._attend_s(self._here, flops, read, spans.count)
                if on_cpu:
                    away += on_cpu * self._attend_s(self._machine.processors["cpu"], flops, read, spans.count)
        return here, away + self._staging_s(layer, loads)

    def past_bytes(self, layer: AttentionShape, loads: Sequence[Load]) -> float:
        """KV of earlier calls that one layer attends to, as it is stored."""
        past = sum(s.number * min(s.first, layer.window or s.first) for load in loads for s in load.spans)
        return past * layer.kv_bytes * self._kv_part

    def _attend_s(self, processor: Processor, flops: float, kv_bytes: float, queries: float) -> float:
        """Attention of spans alike to so many bytes of KV, which are unpacked as a whole before, where they are packed.

        Packing what is new passes over it about as often as unpacking what is old, so both count as one.
        """
        unpack_s = kv_bytes / (NATIVE_BITS // 8) / processor.dequantise_per_s if self._kv_part < 1 else 0.0
        return unpack_s + max(flops / processor.attention.at(queries), kv_bytes / processor.kv_bytes_per_s)

    def _staging_s(self, layer: AttentionShape, loads: Sequence[Load]) -> float:
        """Copies of KV on the cpu to where the link to the gpu can fetch it, while nothing else is launched."""
        share = self._kv.of("cpu")
        if self._compute != "gpu" or not share or self.away:
            return 0.0
        return share * self.past_bytes(layer, loads) / self._machine.links["cpu→gpu"].staging_bytes_per_s
