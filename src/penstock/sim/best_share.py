"""What a run would take if every step read the best share from HBM: the 'best' of the study behind seed-003-legacy."""

from penstock.sim.result import Run
from penstock.sim.scenario import Mode, Scenario


def best_at_share(scenario: Scenario, run: Run) -> float:
    """Seconds of a run whose reads are dealt at the best share, alpha*, and whose writes stay where it put them.

    The sum over (n, l, s) of max(alpha* D / B_h + W_h / B_h, (1 - alpha*) D / B_e + W_e / B_W), by totals: at alpha*
    both memories read equally long, so that a step is longer by the longer of its writes. Not a bound: capacity plays
    no part in it, and writes are not moved to where there is time.
    """
    memories, traffic = scenario.memories, run.traffic
    read_s = (traffic.hbm_read + traffic.ext_read) / (memories.hbm_bytes_per_s + memories.ext_bytes_per_s)
    hbm_written_s = traffic.hbm_written / memories.hbm_bytes_per_s
    ext_written_s = traffic.ext_written / memories.ext_write_bytes_per_s
    if scenario.mode is Mode.EXCLUSIVE:
        return read_s + hbm_written_s + ext_written_s
    # What HBM receives is written to external memory in the same step.
    return read_s + ext_written_s + max(0.0, hbm_written_s - traffic.hbm_written / memories.ext_write_bytes_per_s)
