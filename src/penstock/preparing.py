"""An engine made ready for a job: memory taken as it is placed, resident pages read."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from weakref import finalize

from penstock.engine.build import Blueprint, assemble
from penstock.engine.engine import Engine
from penstock.engine.warming import warm
from penstock.memory.offload import make_offload, remove_offload
from penstock.placing import Placing
from penstock.plan.plan import Prediction
from penstock.plan.policy import Tier
from penstock.plan.types import Job, Placement
from penstock.runtime import Runtime


@dataclass(slots=True, weakref_slot=True)
class Prepared:
    """An engine with what it was built for: the job, its placement, the budgets in force, its directory on disk.

    predicted: what the job that it runs now will do; None where this machine was never measured.
    """

    engine: Engine
    placement: Placement
    job: Job
    budget: Mapping[Tier, int]
    offload: Path | None
    predicted: Prediction | None = None
    _remove: Callable[[], object] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # for whoever does not close it
        self._remove = (lambda: None) if self.offload is None else finalize(self, remove_offload, self.offload)

    def covers(self, job: Job) -> bool:
        """Whether it serves another job as well as an engine of that job's own would."""
        return (
            self.job.prompts >= job.prompts
            and self.job.longest_tokens >= job.longest_tokens
            and self.job.mean_tokens >= job.mean_tokens
            and self.job.longest_prompt >= job.longest_prompt
            and self.job.held >= job.held
        )

    def close(self) -> None:
        """Give back its memory, threads and files."""
        self.engine.close()
        self._remove()


def prepare(model: Blueprint, job: Job, placing: Placing, runtime: Runtime) -> Prepared:
    """An engine for a job. Raises UserError, with nothing left behind, where a budget is too small or a disk full."""
    warm(model, runtime.device.torch_device, placing.attention, placing.may_split)
    placement = placing.choose(job, lambda: runtime.ledger(model.cached_bytes, job.held))
    ledger = runtime.ledger(model.cached_bytes, job.held)
    offload: Path | None = None
    with ExitStack() as undo:
        if placement.kv.get("disk") or placement.policy.activations.disk:
            offload = make_offload(runtime.offload_root)
            undo.callback(remove_offload, offload)
        heap, progress = runtime.budgets.heap_watch(ledger), runtime.progress("reading resident pages")
        engine = assemble(model, placement, runtime.device, runtime.clock, offload, progress, heap)
        undo.pop_all()
    return Prepared(engine, placement, job, ledger.budget, offload)
