"""A model made known to a runtime: its files, tokens and pages, before any weight is read into memory."""

from typing import Any

from penstock.bits import Bits
from penstock.blueprints import Blueprints
from penstock.encoding import Encoder
from penstock.engine.build import Blueprint
from penstock.engine.caching import cache_pages
from penstock.engine.selfcheck import require_exact
from penstock.free_bits import bits_of_run
from penstock.machine import probe
from penstock.model import source, tokenizer
from penstock.model.packing import packing_of
from penstock.model.precision import Precision
from penstock.plan.checks import check_model
from penstock.plan.types import Asked, Job
from penstock.runtime import Runtime
from penstock.sampling import unheeded
from penstock.units import format_bytes


class OpenedModel:
    """A model's source, tokenizer, encoder of prompts and blueprint; its bits may be left to the planner at first.

    asked: what a person fixed of its placement. dtype, trust_remote_code, random_weights, unchecked, page_bytes: as
    ``LLM`` takes them. Raises UserError for what cannot be run exactly.
    """

    def __init__(
        self,
        model: str,
        runtime: Runtime,
        bits: Bits,
        asked: Asked,
        *,
        dtype: str,
        trust_remote_code: bool,
        random_weights: bool,
        unchecked: bool,
        page_bytes: int | None,
    ) -> None:
        self.runtime, self.bits, self._asked = runtime, bits, asked
        found = self.source = source.resolve(
            model,
            trust_remote_code=trust_remote_code,
            random_weights=random_weights,
            progress=runtime.progress(f"fetching {model}"),
        )
        self.tokenizer: Any = tokenizer.load(found, trust_remote_code=trust_remote_code)
        self._blueprints = Blueprints(
            found,
            dtype,
            runtime.device.torch_device.type,
            probe.cpu_computes_bfloat16(),
            runtime.device.compute_tier == "gpu",
            trust_remote_code,
            page_bytes,
        )
        self.blueprint = self._laid_out()
        check_model(self.blueprint.footprint(), asked, runtime.device.compute_tier)
        said = found.generation_config.to_dict() if found.generation_config is not None else {}
        if ignored := unheeded(said):
            runtime.note(f"not done, though the model's generation_config asks for it: {', '.join(ignored)}")
        self.encoder = Encoder(self.blueprint, self.tokenizer, said)
        self._check(unchecked, trust_remote_code)

    def settle(self, job: Job) -> None:
        """Choose the bits that are left to the planner, for a job and whatever comes after it."""
        if self.bits.free:
            self.bits, told = bits_of_run(self.bits, self.blueprint, self._blueprints, self._asked, job, self.runtime)
            self.runtime.note(told)
            self.blueprint = self._laid_out()

    def settle_as(self, recorded: str) -> None:
        """Take the bits that are left to the planner from the name of a precision, as a job has recorded it."""
        if free := self.bits.free:
            self.bits = self.bits.settled(Precision.packing_in(recorded).bits)
            self.runtime.note(f"auto: {self.bits.said(free)}, as this job was begun")
            self.blueprint = self._laid_out()

    def cache_pages(self) -> None:
        """Put converted pages in the page cache, where that finds room; what does not is told."""
        budgets = self.runtime.budgets
        disk = budgets.disk
        self.blueprint = cache_pages(self.blueprint, disk, self.runtime.progress("preparing pages"))
        if left := self.blueprint.converted_bytes:
            bound = "--disk-memory" if budgets.asked["disk"] is not None else "the plan's budget of disk,"
            room = "what is free on disk" if disk is None else f"{bound} {format_bytes(disk)}"
            self.runtime.note(
                f"pages are converted whenever they are read: a cache of {format_bytes(left)} exceeds {room}"
            )

    def close(self) -> None:
        """Let go of the page cache."""
        if self.blueprint.lease is not None:
            self.blueprint.lease.close()

    def _laid_out(self) -> Blueprint:
        """Its pages, after saying what a person should know of them once nothing is left to choose."""
        made = self._blueprints.packed(packing_of(self.bits))
        if made.precision.note and not self.bits.free:
            self.runtime.note(made.precision.note)
        return made

    def _check(self, unchecked: bool, trust_remote_code: bool) -> None:
        """Refuse a model whose tokens would not be its own, unless a person wants it all the same."""
        kind = self.source.config.model_type
        if unchecked:
            self.runtime.note(f"not checked that {kind} runs exactly (--unchecked)")
            return
        asking = f"checking that {kind} runs exactly (once per model and version)"
        require_exact(self.source, trust_remote_code=trust_remote_code, first=lambda: self.runtime.note(asking))
