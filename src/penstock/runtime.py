"""What of this machine one LLM runs on: its device and budgets, the clock of its lanes, and who hears what happens."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from penstock.asked import AskedMemory
from penstock.budgets import Budgets
from penstock.memory.clock import MOST_TRACED, Clock, Lane
from penstock.memory.device import Device, open_device
from penstock.memory.offload import offload_root
from penstock.plan.policy import Tier
from penstock.plan.types import Ledger
from penstock.units import parse_bytes

Event = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Runtime:
    """event: hears what happens, as ``LLM`` says. trace: the file that ``close`` writes it to, where one is wanted."""

    budgets: Budgets
    clock: Clock
    event: Event
    trace: str | os.PathLike[str] | None = None

    @classmethod
    def open(
        cls,
        device: str,
        memory: AskedMemory,
        offload_dir: str | os.PathLike[str] | None,
        trace: str | os.PathLike[str] | None,
        on_event: Event | None,
        planned: Mapping[Tier, int] | None = None,
    ) -> Self:
        """The device of that name within these budgets ("4GiB" or bytes), or those of a plan where there are none.

        UserError for what there is not here.
        """
        asked = {tier: None if size is None else parse_bytes(size, f"--{tier}-memory") for tier, size in memory.items()}
        root, opened = offload_root(offload_dir), open_device(device)
        lane: Lane = "gpu-compute" if opened.compute_tier == "gpu" else "cpu-compute"
        clock = Clock(compute_lane=lane, tracing=trace is not None)
        return cls(Budgets(asked, opened, root, planned or {}), clock, on_event or _log, trace)

    @property
    def device(self) -> Device:
        """What computes."""
        return self.budgets.device

    @property
    def offload_root(self) -> Path:
        """Where KV and activations on disk go."""
        return self.budgets.offload_root

    def ledger(self, cached: int, held: int = 0) -> Ledger:
        """Budgets in force, and what is taken of them now: by the page cache, and by prompts and answers to come."""
        return self.budgets.ledger(cached, held)

    def note(self, text: str) -> None:
        """Tell whoever listens what a person should know."""
        self.event({"kind": "note", "text": text})

    def progress(self, what: str) -> Callable[[int, int], None]:
        """Takes bytes done of a total, and tells of them."""
        return lambda done, total: self.event({"kind": "load", "what": what, "done": done, "total": total})

    def close(self) -> None:
        """End the device's threads, and write the trace where one was asked for."""
        self.device.close()
        if self.trace is None:
            return
        try:
            self.clock.write_trace(self.trace)
        except OSError as error:  # no reason to lose what was generated
            self.note(f"--trace {self.trace} was not written ({error.strerror})")
        else:
            if missing := self.clock.untraced:
                self.note(f"--trace {self.trace} has the first {MOST_TRACED:,} intervals; {missing:,} came later")


def _log(event: Mapping[str, Any]) -> None:
    """Say what a person should know where nobody listens."""
    if event["kind"] == "note":
        logging.getLogger("penstock").warning("%s", event["text"])
