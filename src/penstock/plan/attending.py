"""Seconds of one layer's attention, on the tier that computes and on the cpu beside a gpu."""

from collections.abc import Sequence
from dataclasses import replace

from penstock.machine.machine import Machine, Processor
from penstock.plan.load import Load, Spans
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
        self.wholly = beside and policy.cpu_layers > 0  # what a call computes itself is attended to there, too

    def seconds(self, layer: AttentionShape, loads: Sequence[Load]) -> tuple[float, float]:
        """Of one layer: on the compute tier, and on the cpu beside a gpu."""
        here = away = 0.0
        for load in loads:
            for spans in load.spans:
                pairs, keys = spans.pairs(layer.window), spans.keys(layer.window)
                if self.wholly:
                    away += self._attend_s(self._machine.processors["cpu"], layer, pairs, keys, spans)
                    continue
                # what a call computes is at hand there; of earlier calls a part is away
                own = replace(spans, first=0.0)
                past_pairs, past_keys = pairs - own.pairs(layer.window), keys - own.keys(layer.window)
                left = pairs - self.away * past_pairs, keys - self.away * past_keys
                here += self._attend_s(self._here, layer, *left, spans)
                if self.away and past_pairs > 0:
                    gone = self.away * past_pairs, self.away * past_keys
                    away += self._attend_s(self._machine.processors["cpu"], layer, *gone, spans)
        return here, away + self._staging_s(layer, loads)

    def past_bytes(self, layer: AttentionShape, loads: Sequence[Load]) -> float:
        """KV of earlier calls that one layer attends to, as it is stored."""
        past = sum(s.number * min(s.first, layer.window or s.first) for load in loads for s in load.spans)
        return past * layer.kv_bytes

    def _attend_s(self, processor: Processor, layer: AttentionShape, pairs: float, keys: float, spans: Spans) -> float:
        """Attention of spans alike, in so many pairs of a query and a key, to so many keys with their values, which are
        unpacked before, where they are packed.

        Packing what is new passes over it about as often as unpacking what is old, so both count as one.
        """
        unpack_s = keys * layer.packed_elements / processor.dequantise_per_s if layer.packed_elements else 0.0
        kv_bytes = keys * (_UNPACKED_BYTES * layer.packed_elements or layer.kv_bytes)
        flops = pairs * layer.pair_flops
        rows_s = spans.number * processor.attention_row_s if spans.count == 1 else 0.0  # rates of more contain it
        met_s = max(flops / processor.attention.at(spans.count), kv_bytes / processor.kv_bytes_per_s)
        return unpack_s + rows_s + met_s

    def _staging_s(self, layer: AttentionShape, loads: Sequence[Load]) -> float:
        """Copies of KV on the cpu to where the link to the gpu can fetch it, while nothing else is launched."""
        share = self._kv.of("cpu")
        if self._compute != "gpu" or not share or self.away:
            return 0.0
        return share * self.past_bytes(layer, loads) / self._machine.links["cpu→gpu"].staging_bytes_per_s
