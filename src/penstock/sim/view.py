"""What a policy sees of a step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from penstock.sim.initial import InitialState
from penstock.sim.scenario import Scenario

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class View:
    """Step (n, l) after its reads: `step` is n, the token position it writes; `layer` is l.

    All masks are bool over the tokens 0 to n. `hbm` is [layers, tokens]: the items in HBM, read-only.
    `free` is the places still free. `skipped_at` and `skip_counts_at` serve the methods below.
    `read_from_hbm` and `read_from_ext` are the items of this layer that this step reads.
    """

    step: int
    layer: int
    scenario: Scenario
    start: InitialState
    hbm: Mask
    free: int
    read_from_hbm: Mask
    read_from_ext: Mask
    skipped_at: Callable[[int, int], Mask] = field(repr=False)
    skip_counts_at: Callable[[range], NDArray[np.int64]] = field(repr=False)

    @property
    def best_share(self) -> Fraction:
        """alpha*."""
        return self.scenario.memories.best_share

    @property
    def occupancy_bytes(self) -> int:
        """Weights and items in HBM."""
        return self.start.occupied_bytes + self.scenario.kv_bytes * int(self.hbm.sum())

    @property
    def exist(self) -> Mask:
        """Items that exist, [layers, tokens]: the new token's at the layers before this one, and all older ones."""
        exist = np.ones_like(self.hbm)
        exist[self.layer :, self.step] = False
        return exist

    def ahead(self, window: int) -> range:
        """The steps n + 1 to n + window, cut at the end of the trace."""
        end = self.scenario.prefill_tokens + self.scenario.decode_tokens
        return range(self.step + 1, min(self.step + window + 1, end))

    def back(self, window: int) -> range:
        """The steps n - window + 1 to n, cut at the first."""
        return range(max(self.step - window + 1, self.scenario.prefill_tokens), self.step + 1)

    def skipped(self, step: int) -> Mask:
        """S(step, l); of a following or past step only if the policy's `ahead` or `back` reaches it."""
        return self.skipped_at(step, self.layer)

    def read(self, step: int) -> Mask:
        """R(step, l) among the tokens 0 to n."""
        return ~self.skipped(step) & (np.arange(self.step + 1) < step)

    def skip_counts(self, steps: range) -> NDArray[np.int64]:
        """|S(m, l')| of following or past steps m and all layers l', [steps, layers]."""
        return self.skip_counts_at(steps)

    def read_counts(self, steps: range) -> NDArray[np.int64]:
        """|R(m, l)| of steps m, tokens after n counted too."""
        return np.array(steps, np.int64) - self.skip_counts(steps)[:, self.layer]
