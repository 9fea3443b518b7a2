"""A policy pair replayed in plain numpy: the reference, and the form that runs policies of a user's own."""

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from penstock.sim.initial import InitialState
from penstock.sim.mover import Mover, seconds
from penstock.sim.pair import Pair
from penstock.sim.passive import install
from penstock.sim.policy import looks_ahead, looks_back
from penstock.sim.prices import (
    BYTE_KINDS,
    EXT_READ,
    EXT_WRITTEN,
    HBM_READ,
    HBM_WRITTEN,
    Prices,
    passive_limit,
)
from penstock.sim.scenario import Mode, Passive, Scenario
from penstock.sim.view import Mask, View
from penstock.sim.windows import Window

CACHED_ROWS = 256  # a policy with a window asks for the same skip sets step after step

Rows = Callable[[int, int], Mask]
Kind = TypeVar("Kind", bound=np.generic)


class NumpyForm:
    """The state of one pair between windows."""

    def __init__(self, scenario: Scenario, start: InitialState, pair: Pair) -> None:
        self.scenario, self.start, self.pair = scenario, start, pair
        self.prices = Prices.of(scenario)
        tokens = scenario.prefill_tokens + scenario.decode_tokens
        self.hbm = np.zeros((scenario.layers, tokens), np.bool_)
        self.hbm[:, : scenario.prefill_tokens] = start.items
        self.last_use = np.zeros((scenario.layers, tokens), np.int64)

    def advance(self, window: Window) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Replay a window: bytes of every attention step [steps, layers, 8], items in HBM after it [steps, layers]."""
        layers = self.scenario.layers
        counts = np.empty((window.steps, layers, BYTE_KINDS), np.int64)
        items = np.empty((window.steps, layers), np.int64)
        rows = self._rows(window)
        for step in range(window.steps):
            for layer in range(layers):
                counts[step, layer] = self._step(window, rows, window.first + step, layer)
                items[step, layer] = self.hbm.sum()
        return counts, items

    def _step(self, window: Window, rows: Rows, step: int, layer: int) -> NDArray[np.int64]:
        """Reads, moves, installs and the new item of one attention step, in this order."""
        token = self.scenario.prefill_tokens + step
        hbm = self.hbm[:, : token + 1]
        reads = ~rows(token, layer)[: token + 1]
        reads[token] = False
        from_hbm, from_ext = _read_only(reads & hbm[layer]), _read_only(reads & ~hbm[layer])
        counts = self._reads(layer, int(from_hbm.sum()), int(from_ext.sum()))
        mover = Mover(
            hbm,
            self.start.slots,
            self.scenario.kv_bytes,
            self.scenario.mode is Mode.EXCLUSIVE,
            self.prices,
            layer,
            from_hbm,
            from_ext,
            counts,
        )

        def view(policy: object) -> View:
            return self._view(window, rows, mover, token, policy)

        def finish() -> bool:
            to_hbm = self.pair.placement.in_hbm(view(self.pair.placement)) and mover.free > 0
            self._write(counts, to_hbm)
            if self.scenario.mode is Mode.INCLUSIVE:
                self.prices.split(counts, self.scenario.kv_bytes * int(from_hbm.sum()))
            return to_hbm

        if self.pair.budget_slack:
            to_hbm = finish()
            mover.limit_s, mover.kept = seconds(self.prices, counts), int(to_hbm)
        mover.carry_out(self.pair.migration.moves(view(self.pair.migration)))
        self._install(mover, reads, token, step * self.scenario.layers + layer + 1)
        if not self.pair.budget_slack:
            to_hbm = finish()
        self.hbm[layer, token] = to_hbm
        return counts

    def _reads(self, layer: int, from_hbm: int, from_ext: int) -> NDArray[np.int64]:
        scenario, weights = self.scenario, int(self.start.attn_bytes[layer])
        counts = np.zeros(BYTE_KINDS, np.int64)
        counts[HBM_READ] = weights + scenario.kv_bytes * from_hbm
        counts[EXT_READ] = scenario.attn_bytes - weights + scenario.kv_bytes * from_ext
        return counts

    def _install(self, mover: Mover, reads: Mask, token: int, time: int) -> None:
        """The passive policy; `time` is the step's place in the order of all."""
        passive, scenario, layer = self.pair.passive(self.scenario), self.scenario, mover.layer
        if passive is Passive.OFF:
            return
        self.last_use[layer, : token + 1][reads] = time
        self.last_use[layer, token] = time
        limit = None
        if passive is Passive.ALPHA:
            share, weights = scenario.memories.best_share, int(self.start.attn_bytes[layer])
            step_bytes = scenario.attn_bytes + scenario.kv_bytes * int(reads.sum())
            hit = int(mover.from_hbm.sum())
            limit = passive_limit(share.numerator, share.denominator, step_bytes, weights, scenario.kv_bytes, hit)
        install(mover, limit, self.last_use[:, : token + 1])

    def _write(self, counts: NDArray[np.int64], to_hbm: bool) -> None:
        inclusive = self.scenario.mode is Mode.INCLUSIVE
        counts[HBM_WRITTEN] = self.scenario.kv_bytes * to_hbm
        counts[EXT_WRITTEN] = self.scenario.kv_bytes * (inclusive or not to_hbm)

    def _view(self, window: Window, rows: Rows, mover: Mover, token: int, policy: object) -> View:
        first = self.scenario.prefill_tokens
        seen = range(
            max(token - looks_back(policy), first),
            min(token + looks_ahead(policy), first + self.scenario.decode_tokens - 1) + 1,
        )

        def skipped_at(step: int, layer: int) -> Mask:
            if step not in seen:
                raise IndexError(f"asks for step {step}, but sees {seen.start} to {seen.stop - 1}: set ahead or back")
            return rows(step, layer)[: token + 1]

        def skip_counts_at(steps: range) -> NDArray[np.int64]:
            if len(steps) and not first <= steps.start <= steps.stop <= seen.stop:
                raise IndexError(
                    f"asks for steps {steps.start} to {steps.stop - 1}, but sees {first} to {seen.stop - 1}: set ahead"
                )
            return _read_only(window.skip_counts[steps.start - first : steps.stop - first])

        return View(
            token,
            mover.layer,
            self.scenario,
            self.start,
            _read_only(mover.hbm.view()),
            mover.free,
            mover.from_hbm,
            mover.from_ext,
            skipped_at,
            skip_counts_at,
        )

    def _rows(self, window: Window) -> Rows:
        """S(n, l) of the window's steps over all tokens, read-only."""
        first = self.scenario.prefill_tokens + window.first - window.lead

        @lru_cache(CACHED_ROWS)
        def row(token: int, layer: int) -> Mask:
            octets = np.ascontiguousarray(window.bits[token - first, layer], dtype="<u8").view(np.uint8)
            return _read_only(np.unpackbits(octets, bitorder="little").view(np.bool_))

        return row


def _read_only(array: NDArray[Kind]) -> NDArray[Kind]:
    """The array, which a policy sees and cannot change."""
    array.setflags(write=False)
    return array
