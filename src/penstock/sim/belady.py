"""Belady's rule as a reference: HBM keeps what is read soonest. Plain numpy, for small and medium instances."""

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UserError
from penstock.sim.initial import InitialState
from penstock.sim.prices import (
    BYTE_KINDS,
    EXT_READ,
    EXT_WRITTEN,
    HBM_READ,
    HBM_WRITTEN,
    MOVED_EXT_WRITTEN,
    MOVED_HBM_READ,
    MOVED_HBM_WRITTEN,
    Prices,
)
from penstock.sim.read_sets import read_mask
from penstock.sim.scenario import Mode, Scenario
from penstock.sim.windows import Window
from penstock.trace.skip_trace import SkipTrace, TraceShape

MOST_READS = 1 << 27  # of (step, layer, token): five bytes are held for each
NEVER = np.iinfo(np.int32).max  # later than any read


def check_size(shape: TraceShape) -> None:
    """Raise UserError where a trace is too large to hold the next read of every item at every step."""
    reads = shape.steps * shape.layers * shape.tokens
    if reads > MOST_READS:
        raise UserError(
            f"belady is for small and medium instances: {reads:,} reads to look ahead over, at most {MOST_READS:,}; "
            "shorten the lengths"
        )


class BeladyForm:
    """HBM under the reference that docs/policies.md calls Belady (Bounds), over the steps of one trace.

    `leaves` ranks items: the highest in HBM leaves first. That is the one read last; of several, the oldest, in the
    lowest layer. All arrays are [layers, tokens].
    """

    def __init__(self, scenario: Scenario, start: InitialState, trace: SkipTrace) -> None:
        check_size(trace.shape)
        self.scenario, self.start, self.reads = scenario, start, read_mask(trace)
        self.prices = Prices.of(scenario)
        self.next_reads = _next_reads(self.reads)
        _, layers, tokens = self.reads.shape
        self.hbm = np.zeros((layers, tokens), np.bool_)
        self.hbm[:, : scenario.prefill_tokens] = start.items
        layer, token = np.arange(layers)[:, None], np.arange(tokens)
        self.seniority = self.hbm.size - 1 - (token * layers + layer)
        next_read = np.where(self.reads[0], layer, self.next_reads[0])
        self.leaves = next_read.astype(np.int64) * self.hbm.size + self.seniority

    def advance(self, window: Window) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Replay a window: bytes of every attention step [steps, layers, 8], items in HBM after it [steps, layers]."""
        layers = self.scenario.layers
        counts = np.zeros((window.steps, layers, BYTE_KINDS), np.int64)
        items = np.empty((window.steps, layers), np.int64)
        for step in range(window.steps):
            for layer in range(layers):
                self._step(window.first + step, layer, counts[step, layer])
                items[step, layer] = np.count_nonzero(self.hbm)
        return counts, items

    def _step(self, step: int, layer: int, counts: NDArray[np.int64]) -> None:
        scenario, item = self.scenario, self.scenario.kv_bytes
        new = scenario.prefill_tokens + step
        next_read = self.next_reads[step, layer].astype(np.int64)
        self.leaves[layer] = next_read * self.hbm.size + self.seniority[layer]
        from_hbm = self.reads[step, layer] & self.hbm[layer]
        from_ext = self.reads[step, layer] & ~self.hbm[layer]
        hit = int(np.count_nonzero(from_hbm))
        held = int(self.start.attn_bytes[layer])
        counts[HBM_READ] = held + item * hit
        counts[EXT_READ] = scenario.attn_bytes - held + item * int(np.count_nonzero(from_ext))

        stay, leave = self._exchange(next_read, from_ext, new)
        to_hbm = new in stay
        exclusive = scenario.mode is Mode.EXCLUSIVE
        counts[HBM_WRITTEN] = item * to_hbm
        counts[EXT_WRITTEN] = item * (not (exclusive and to_hbm))
        counts[MOVED_HBM_WRITTEN] = item * (len(stay) - to_hbm)
        if exclusive:
            at_layer, token = np.unravel_index(leave, self.hbm.shape)
            in_flight = int(np.count_nonzero(from_hbm[token[at_layer == layer]]))
            counts[MOVED_EXT_WRITTEN] = item * len(leave)
            counts[MOVED_HBM_READ] = item * (len(leave) - in_flight)
        else:
            self.prices.split(counts, item * hit)
        self.hbm.ravel()[leave] = False
        self.hbm[layer, stay] = True

    def _exchange(
        self, next_read: NDArray[np.int64], from_ext: NDArray[np.bool_], new: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which tokens of the layer take a place (the new one among them), and which items leave, as flat indices.

        What is read soonest comes first, against what is read last of all that HBM holds. A free place also takes a
        new item that is never read: writing it there is no worse.
        """
        wanted = np.append(np.flatnonzero(from_ext & (next_read != NEVER)), new)[::-1]
        wanted = wanted[np.argsort(next_read[wanted], kind="stable")]
        held = int(np.count_nonzero(self.hbm))
        free = self.start.slots - held
        stay, rivals = wanted[:free], wanted[free:][:held]
        latest = self._last_read(len(rivals))
        # Rivals are read ever later and residents ever sooner, so whoever gains from the exchange stands in front.
        gains = int(np.count_nonzero(self.leaves.ravel()[latest] // self.hbm.size > next_read[rivals]))
        return np.concatenate((stay, rivals[:gains])), latest[:gains]

    def _last_read(self, count: int) -> NDArray[np.int64]:
        """The first items to leave, in their order, as flat indices."""
        if not count:
            return np.empty(0, np.int64)
        order = np.where(self.hbm, -self.leaves, 0).ravel()
        first = np.argpartition(order, count - 1)[:count]
        return first[np.argsort(order[first])]


def _next_reads(reads: NDArray[np.bool_]) -> NDArray[np.int32]:
    """When each item is read next after each step, as the place of that step in the order of all (n, l)."""
    steps, layers, _ = reads.shape
    place = np.arange(steps * layers, dtype=np.int32).reshape(steps, layers, 1)
    at = np.full(reads.shape, NEVER, np.int32)
    for step in range(steps - 1, 0, -1):
        at[step - 1] = np.where(reads[step], place[step], at[step])
    return at
