"""One line of a results table: what was run, and what came of it. Plain values, so that processes can hand it over."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.sim.result import Series

CURVE_POINTS = 512


@dataclass(frozen=True)
class Row:
    """A combination's settings, then its results; the fields are the columns of every table, in this order.

    Shares are parts of 1. None: the quantity does not exist (a level of a recorded trace, a bound not asked for).
    """

    id: str  # of everything that the result depends on
    scenario: str
    placement: str  # with its options that were not swept, as in look-ahead-batch:window=8
    migration: str
    clairvoyant: bool
    skip: float | None  # the level asked for; None: a trace from a file, or given in the scenario
    trace: str  # "synthetic", "inline" or the file's name
    mode: str
    passive: str
    budget: str  # of moves: all, or slack
    init: str
    omega: float  # part of the weights in HBM
    phi: float | None
    prefill_tokens: int
    decode_tokens: int
    hbm_capacity_bytes: int
    skip_realised: float  # tokens skipped / tokens there, over all steps and layers
    overlap_realised: float | None  # part of a step's read set that the next one reads again; None: a single step
    time_s: float
    ms_per_token: float  # of a token step, all rows of the batch together
    tok_s: float | None  # of all rows of the batch; None: no time passes
    mean_alpha: float | None  # over steps; None: nothing was read
    mean_alpha_bytes: float | None
    hbm_hit_rate: float | None  # KV read from HBM / KV read; None: no KV was
    hbm_read_bytes: int
    ext_read_bytes: int
    hbm_written_bytes: int
    ext_written_bytes: int
    moved_hbm_read_bytes: int
    moved_hbm_written_bytes: int
    moved_ext_read_bytes: int
    moved_ext_written_bytes: int
    migrated_bytes: int
    peak_hbm_bytes: int
    peak_occupancy: float  # of the capacity
    bound_hbm: float  # parts of the time that each term bound
    bound_ext_read: float
    bound_ext_write: float
    bound_ext_internal: float
    bound_compute: float
    lb0_s: float
    lb1_s: float
    lb1_at_weights_s: float
    lb2_s: float | None
    oracle_share: float  # lb1_at_weights_s / time_s
    lb1_share: float  # lb1_s / time_s
    best_s: float | None  # reads dealt at the best share, writes as this run placed them; legacy scenarios


@dataclass(frozen=True)
class Curve:
    """A run over its steps, in at most CURVE_POINTS equal portions; all arrays are [portion].

    step: the last step of a portion (0 is the first decode step); ms_per_token, alpha: means over it (NaN: nothing was
    read); hbm_bytes: occupancy at its end, weights included.
    """

    step: NDArray[np.int64]
    ms_per_token: NDArray[np.float64]
    alpha: NDArray[np.float64]
    hbm_bytes: NDArray[np.int64]


def curve_of(series: Series, weights_bytes: int, kv_bytes: int) -> Curve:
    """A series thinned; weights_bytes: what weights take of HBM; kv_bytes: of an item."""
    steps = len(series.time_s)
    edges = np.unique(np.linspace(0, steps, min(steps, CURVE_POINTS) + 1).astype(np.int64))
    sizes = np.diff(edges)
    starts, last = edges[:-1], edges[1:] - 1
    read = ~np.isnan(series.alpha)
    counted = np.add.reduceat(read.astype(np.int64), starts)
    alpha = np.add.reduceat(np.where(read, series.alpha, 0.0), starts)
    return Curve(
        step=last,
        ms_per_token=np.add.reduceat(series.time_s, starts) / sizes * 1000,
        alpha=np.where(counted > 0, alpha / np.maximum(counted, 1), np.nan),
        hbm_bytes=weights_bytes + kv_bytes * series.hbm_items[last].astype(np.int64),
    )
