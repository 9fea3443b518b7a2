"""Placement and migration of KV on a fast memory and an external one, replayed byte by byte beside a bound.

from penstock.sim import Scenario, grid, simulate
table = grid("seed-004", skip=[0.3], migrations=["none", "alpha"])
"""

from typing import TYPE_CHECKING

from penstock.sim.scenario import Scenario

if TYPE_CHECKING:
    from penstock.sim.simulator import simulate
    from penstock.sim.study_run import grid

__all__ = ["Scenario", "grid", "simulate"]


def __getattr__(name: str) -> object:
    """Load numpy, polars and kernels when they are first asked for."""
    if name == "simulate":
        from penstock.sim.simulator import simulate

        return simulate
    if name == "grid":
        from penstock.sim.study_run import grid

        return grid
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
