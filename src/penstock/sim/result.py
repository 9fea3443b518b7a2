"""What one simulated run counted."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

BINDING = ("hbm", "ext-read", "ext-write", "ext-internal", "compute")


@dataclass(frozen=True)
class Traffic:
    """Bytes by memory and kind, as docs/policies.md names them."""

    hbm_read: int = 0
    ext_read: int = 0
    hbm_written: int = 0
    ext_written: int = 0
    moved_hbm_read: int = 0
    moved_hbm_written: int = 0
    moved_ext_read: int = 0
    moved_ext_written: int = 0


@dataclass(frozen=True)
class Series:
    """For each token step: seconds, the share of its bytes read from HBM (NaN: none were), items in HBM at its end."""

    time_s: NDArray[np.float64]
    alpha: NDArray[np.float64]
    hbm_items: NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """A policy pair's run over a trace: exact integers, and times in seconds.

    `alpha_sum` over `alpha_steps` gives the plain mean; `binding_s` has the time bound by each of BINDING.
    `warning` says what of the start found no place; it is empty where all did.
    """

    placement: str
    migration: str
    clairvoyant: bool
    time_s: float
    traffic: Traffic
    kv_read: int
    kv_hbm_read: int
    alpha_sum: float
    alpha_steps: int
    peak_hbm_bytes: int
    binding_s: tuple[float, ...]
    series: Series
    warning: str = ""

    @property
    def mean_alpha(self) -> float:
        """The plain mean of alpha over the steps that read anything (NaN: none did)."""
        return self.alpha_sum / self.alpha_steps if self.alpha_steps else float("nan")

    @property
    def mean_alpha_bytes(self) -> float:
        """The mean of alpha weighted by the bytes read (NaN: nothing was)."""
        read = self.traffic.hbm_read + self.traffic.ext_read
        return float(Fraction(self.traffic.hbm_read, read)) if read else float("nan")

    @property
    def migrated_bytes(self) -> int:
        """Bytes that moves wrote on either side."""
        return self.traffic.moved_hbm_written + self.traffic.moved_ext_written
