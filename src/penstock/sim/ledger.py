"""A run's account, kept window by window: both forms count bytes, and this turns them into times and means."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.sim.initial import InitialState
from penstock.sim.pair import Pair
from penstock.sim.prices import BYTE_KINDS, EXT_READ, HBM_READ, Prices
from penstock.sim.result import BINDING, Run, Series, Traffic
from penstock.sim.scenario import Scenario


@dataclass(frozen=True)
class StepBatch:
    """Some token steps in full: `first` is the first's token position, and all arrays begin [steps, layers, sublayer].

    `bytes_by_kind` [..., 8] follows Traffic's fields; `time_s` is T; `binding` is what binds, an index into BINDING.
    """

    first: int
    bytes_by_kind: NDArray[np.int64]
    time_s: NDArray[np.float64]
    binding: NDArray[np.uint8]


StepSink = Callable[[StepBatch], None]


class Ledger:
    """The sums of one run; copy.deepcopy makes that of another which has been the same so far."""

    def __init__(self, scenario: Scenario, start: InitialState, each_step: StepSink | None = None) -> None:
        self.scenario, self.start, self.each_step = scenario, start, each_step
        self.prices = Prices.of(scenario)
        steps, layers = scenario.decode_tokens, scenario.layers
        mlp = np.zeros((1, layers, BYTE_KINDS), np.int64)
        mlp[..., HBM_READ] = start.mlp_bytes
        mlp[..., EXT_READ] = scenario.mlp_bytes - start.mlp_bytes
        self._mlp = _Sublayer.of(self.prices, mlp)  # the same in every step
        self._bytes = np.zeros((steps, BYTE_KINDS), np.int64)
        self._time = np.zeros((steps, len(BINDING)))
        self._alpha = np.zeros(steps)
        self._alpha_steps = 0
        self._items = np.zeros(steps, np.int64)
        self._most_items = int(start.items.sum())

    def add(self, first: int, counts: NDArray[np.int64], items: NDArray[np.int64]) -> None:
        """Account for attention steps [steps, layers, 8] from the step `first` of the trace on, and items in HBM."""
        rows = slice(first, first + len(counts))
        attention, mlp = _Sublayer.of(self.prices, counts), self._mlp
        self._bytes[rows] = attention.bytes_by_step + mlp.bytes_by_step
        self._time[rows] = attention.time_by_term + mlp.time_by_term
        self._alpha[rows] = attention.alpha + mlp.alpha
        self._alpha_steps += attention.reading + mlp.reading * len(counts)
        self._items[rows] = items[:, -1]
        self._most_items = max(self._most_items, int(items.max()))
        if self.each_step is not None:
            both, time, binding = (
                np.stack((own, np.broadcast_to(every, own.shape)), axis=2)
                for own, every in (
                    (counts, mlp.counts),
                    (attention.time_s, mlp.time_s),
                    (attention.binding, mlp.binding),
                )
            )
            self.each_step(StepBatch(self.scenario.prefill_tokens + first, both, time, binding))

    def run(self, pair: Pair) -> Run:
        """The account closed."""
        scenario, start = self.scenario, self.start
        traffic = Traffic(*(int(total) for total in self._bytes.sum(axis=0)))
        steps = scenario.decode_tokens
        weights_hbm = steps * int(start.attn_bytes.sum() + start.mlp_bytes.sum())
        time_s = self._time.sum(axis=1)
        hbm_read = self._bytes[:, HBM_READ]
        read = hbm_read + self._bytes[:, EXT_READ]
        alpha = np.divide(hbm_read, read, out=np.full(steps, np.nan), where=read > 0)
        return Run(
            placement=pair.placement_name,
            migration=pair.migration_name,
            clairvoyant=pair.ahead > 0,
            time_s=float(time_s.sum()),
            traffic=traffic,
            kv_read=traffic.hbm_read + traffic.ext_read - steps * scenario.weights_bytes,
            kv_hbm_read=traffic.hbm_read - weights_hbm,
            alpha_sum=float(self._alpha.sum()),
            alpha_steps=self._alpha_steps,
            peak_hbm_bytes=start.occupied_bytes + scenario.kv_bytes * self._most_items,
            binding_s=tuple(self._time.sum(axis=0).tolist()),
            series=Series(time_s, alpha, self._items),
            warning=start.warning,
        )


@dataclass(frozen=True)
class _Sublayer:
    """One sublayer of some token steps: what it moved [steps, layers, 8], T and what binds, and each step's sums.

    reading: of all (step, layer), those that read anything; alpha: the sum over layers of the share read from HBM.
    """

    counts: NDArray[np.int64]
    time_s: NDArray[np.float64]
    binding: NDArray[np.uint8]
    bytes_by_step: NDArray[np.int64]
    time_by_term: NDArray[np.float64]
    alpha: NDArray[np.float64]
    reading: int

    @classmethod
    def of(cls, prices: Prices, counts: NDArray[np.int64]) -> "_Sublayer":
        """The account of these bytes."""
        kinds = np.ascontiguousarray(np.moveaxis(counts, -1, 0))  # every kind is gone over several times
        time, binding = prices.time(kinds)
        steps, terms = len(counts), len(BINDING)
        place = binding + terms * np.arange(steps)[:, None]
        sums = np.bincount(place.ravel(), time.ravel(), minlength=steps * terms)
        by_term = sums.reshape(steps, terms).astype(np.float64, copy=False)  # numpy types sums of weights as integers
        read = kinds[HBM_READ] + kinds[EXT_READ]
        share = kinds[HBM_READ] / np.maximum(read, 1)
        reading = int(np.count_nonzero(read))
        return cls(counts, time, binding, kinds.sum(axis=2).T, by_term, _of_each_step(share), reading)


def _of_each_step(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of each first index, the same however many there are."""
    sums: NDArray[np.float64] = np.ascontiguousarray(values).reshape(len(values), -1).sum(axis=1)
    return sums
