"""``LLM``: a model, its budgets and its placement, ready to generate."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import finalize, ref

from penstock.asked import Shared, asked_for
from penstock.batch import run_batch
from penstock.budgets import Budgets
from penstock.encoding import Encoder, Item, Prompt, job_of
from penstock.engine.build import Blueprint, assemble, blueprint
from penstock.engine.caching import cache_pages
from penstock.engine.selfcheck import require_exact
from penstock.errors import UserError
from penstock.generation import Event, Prepared, Run, Surroundings
from penstock.jobs.terms import Wish
from penstock.machine import probe
from penstock.memory.allocator import give_back_at_once
from penstock.memory.clock import MOST_TRACED, Clock, check_trace
from penstock.memory.device import Device, open_device
from penstock.memory.offload import make_offload, offload_root, remove_offload
from penstock.model import precision, source, tokenizer
from penstock.model.fingerprint import fingerprint
from penstock.model.packing import packing_of
from penstock.outlook import Outlook
from penstock.outputs import RequestOutput
from penstock.placing import Placing, packing_of_plan, saved_plan
from penstock.plan.policy import Tier
from penstock.plan.types import Job, Ledger
from penstock.sampling import SamplingParams, unheeded
from penstock.units import format_bytes, parse_bytes

READ_AHEAD = 1024  # prompts of a stream that wait for room at most


class LLM:
    """A model on memory tiers. Keywords mirror the command line's flags.

    model: directory, GGUF file, hub id or ``demo``. gpu_memory, cpu_memory, disk_memory: budgets ("4GiB" or bytes).
    weights, kv, activations: shares ("cpu=40%,disk=60%"). plan: a file that ``penstock plan --save`` wrote. trace: the
    file that ``close`` writes it to. page_bytes: largest page. on_event: called with dictionaries whose ``kind`` is
    ``note`` (``text``), ``load`` (``what``; bytes ``done`` of ``total``), ``sweep`` (progress after each) or ``text``
    (new ``text`` of prompt ``index``, where it is the only one or has stop texts); without it notes go to the logger
    ``penstock``. The others mirror flags: ``penstock generate --help``.

    last_run: figures of the last ``generate``, as ``report.Account.summary`` describes them. Mistakes and refusals
    raise UserError with one line. Use it as a context manager, or call ``close``.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        weight_bits: int | None = None,
        lm_head_bits: int | None = None,
        kv_bits: int | None = None,
        device: str = "auto",
        gpu_memory: str | int | None = None,
        cpu_memory: str | int | None = None,
        disk_memory: str | int | None = None,
        offload_dir: str | os.PathLike[str] | None = None,
        weights: Shared = None,
        kv: Shared = None,
        activations: Shared = None,
        attention: str | None = None,
        rows: int | None = None,
        sweep_tokens: int | None = None,
        batch_tokens: int | None = None,
        slots: int | None = None,
        batch_size: int | None = None,
        num_batches: int | None = None,
        plan: str | os.PathLike[str] | None = None,
        trust_remote_code: bool = False,
        random_weights: bool = False,
        unchecked: bool = False,
        trace: str | os.PathLike[str] | None = None,
        on_event: Event | None = None,
        page_bytes: int | None = None,
    ) -> None:
        self.asked = asked_for(
            weights=weights,
            kv=kv,
            activations=activations,
            rows=rows,
            sweep_tokens=sweep_tokens,
            batch_tokens=batch_tokens,
            slots=slots,
            batch_size=batch_size,
            num_batches=num_batches,
            attention=attention,
        )
        self._saved = None if plan is None else saved_plan(Path(plan), self.asked)
        packing = packing_of(weight_bits, lm_head_bits, kv_bits)
        if self._saved is not None:
            packing = packing_of_plan(self._saved, packing)
        if trace is not None:
            check_trace(trace)
        give_back_at_once()
        asked_bytes: dict[Tier, str | int | None] = {"gpu": gpu_memory, "cpu": cpu_memory, "disk": disk_memory}
        asked_budget = {t: None if b is None else parse_bytes(b, f"--{t}-memory") for t, b in asked_bytes.items()}
        self._event: Event = on_event or _log
        self._trace = trace
        self._ready: Prepared | None = None
        self._closed = False
        self._live: Callable[[], Run | None] = lambda: None
        self.last_run: dict[str, Any] = {}
        self._offload_root = offload_root(offload_dir)
        self._device: Device = open_device(device)
        if gpu_memory is not None and self._device.compute_tier != "gpu":
            raise UserError("--gpu-memory is given, and there is no gpu here: leave it out")
        self._budgets = Budgets(asked_budget, self._device, self._offload_root)
        self._clock = Clock(
            compute_lane="gpu-compute" if self._device.compute_tier == "gpu" else "cpu-compute",
            tracing=trace is not None,
        )
        found = self._source = source.resolve(
            model,
            trust_remote_code=trust_remote_code,
            random_weights=random_weights,
            progress=self._progress(f"fetching {model}"),
        )
        kind, cpu_bfloat16 = self._device.torch_device.type, probe.cpu_computes_bfloat16()
        packed_in = found.packed_in(kind)
        chosen = precision.choose(dtype, found.checkpoint_dtype, kind, cpu_bfloat16, packing, packed_in)
        if chosen.note:
            self.note(chosen.note)
        self.tokenizer = tokenizer.load(found, trust_remote_code=trust_remote_code)
        self.blueprint: Blueprint = blueprint(
            found,
            chosen,
            trust_remote_code=trust_remote_code,
            one_group=self._device.compute_tier == "gpu",
            page_bytes=page_bytes,
        )
        said = found.generation_config.to_dict() if found.generation_config is not None else {}
        if ignored := unheeded(said):
            self.note(f"not done, though the model's generation_config asks for it: {', '.join(ignored)}")
        self.encoder = Encoder(self.blueprint, self.tokenizer, said)
        self._check(found, unchecked, trust_remote_code)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        chat: bool = False,
    ) -> list[RequestOutput]:
        """Generate for every prompt; results in input order.

        prompts: text, or ``{"prompt"}``, ``{"messages"}`` or ``{"prompt_token_ids"}``, with settings of that prompt
        beside it (``"max_tokens"``) as in a line of a batch file. chat: wrap plain text in the model's chat template
        where it has one. Raises UserError for what cannot be run, and where the logits of a row are not finite.
        """
        listed: Sequence[Prompt] = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        settings = [params or SamplingParams()] * len(listed) if not isinstance(params, Sequence) else list(params)
        if len(settings) != len(listed):
            raise UserError(
                f"{len(listed)} prompts and {len(settings)} sampling parameters: give one for all or one each"
            )
        items = [
            self.encoder.item(i, prompt, asked, chat)
            for i, (prompt, asked) in enumerate(zip(listed, settings, strict=True))
        ]
        if not items:
            return []
        run = self.run(items, job_of(items), Outlook(len(items)))
        outputs: dict[int, RequestOutput] = {}
        for item, output in run:
            if isinstance(output, UserError):
                raise output
            outputs[item.index] = output
        self._conclude(run)
        return [outputs[item.index] for item in items]

    def stream(
        self, prompts: Iterable[Prompt], params: SamplingParams | None = None, *, chat: bool = False
    ) -> Iterator[RequestOutput]:
        """Generate for prompts from any iterable, read as rows become free; results as they end.

        prompts: as ``generate`` takes them. ``request_id`` is a prompt's place in the input. Memory is laid out for the
        lengths of the first READ_AHEAD. Raises UserError for a prompt that cannot be run, when its turn comes.
        """
        items = (self.encoder.item(i, prompt, params or SamplingParams(), chat) for i, prompt in enumerate(prompts))
        first = list(islice(items, READ_AHEAD))
        if not first:
            return
        run = self.run(chain(first, items), job_of(first), Outlook(0), READ_AHEAD)
        for _, output in run:
            if isinstance(output, UserError):
                raise output
            yield output
        self._conclude(run)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        params: SamplingParams | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several."""
        several = [messages] if messages and isinstance(messages[0], Mapping) else messages
        return self.generate([{"messages": conversation} for conversation in several], params)

    def run_batch(
        self,
        source: str | os.PathLike[str],
        out: str | os.PathLike[str],
        params: SamplingParams | None = None,
        *,
        chat: bool | None = None,
        overwrite: bool = False,
        retry_errors: bool = False,
    ) -> dict[str, Any]:
        """Answer every line of a batch file, appending to ``out``; called again, it goes on where it was stopped.

        source: lines in OpenAI's batch form, or ``{"prompt"}``, ``{"messages"}`` or ``{"prompt_token_ids"}``; gzip and
        zstd too. params: what holds where a line says nothing. Returns the figures of the run, ``last_run`` with what
        was answered. Raises UserError before anything is written, and penstock.jobs.errors.JobStopped where the job
        was stopped by something else and can go on.
        """
        wish = Wish(params or SamplingParams(), chat, overwrite, retry_errors)
        self.last_run = run_batch(self, Path(source), Path(out), wish)
        return self.last_run

    def note(self, text: str) -> None:
        """Tell whoever listens (``on_event``) what a person should know."""
        self._event({"kind": "note", "text": text})

    @property
    def name(self) -> str:
        """The model's name, as answers give it."""
        return self._source.name

    @cached_property
    def fingerprint(self) -> str:
        """What tells the model from others, whatever its files are called."""
        return fingerprint(self._source)

    @property
    def offload_dir(self) -> Path:
        """Where KV and activations on disk go."""
        return self._offload_root

    def run(self, items: Iterable[Item], job: Job, outlook: Outlook, ahead: int | None = None) -> Run:
        """A run of the items, on an engine for the job: the one at hand where it is large enough, else a new one."""
        if self._closed:
            raise UserError("this LLM is closed: make a new one")
        if (live := self._live()) is not None and live.live:
            raise UserError("a stream of this LLM is not at its end: read it to there or close it before the next run")
        prepared = self._prepared(job)  # the blueprint may be another one then, with pages in the page cache
        prepared.predicted = self._placing.predict(prepared.placement, job, prepared.budget)
        if prepared.predicted is not None and job.prompts > 1:
            self._placing.tell(prepared.predicted, job)
        around = Surroundings(self.blueprint, self._device, self._clock, self.tokenizer, self._event)
        run = Run(around, prepared, items, outlook, ahead)
        self._live = ref(run)
        return run

    @property
    def _placing(self) -> Placing:
        return Placing(self.blueprint, self.asked, self._saved, self.compute_tier, self._offload_root, self._event)

    @property
    def compute_tier(self) -> Tier:
        """The tier that computes, with the memory beside it: ``gpu`` or ``cpu``."""
        return self._device.compute_tier

    def ledger(self) -> Ledger:
        """Budgets in force, and what is taken of them now."""
        return self._budgets.ledger(self.blueprint.cached_bytes)

    def close(self) -> None:
        """Give back memory, threads and files; write the trace where one was asked for. Can be called twice."""
        if self._closed:
            return
        self._closed = True
        self._drop_engine()
        if self.blueprint.lease is not None:
            self.blueprint.lease.close()
        self._device.close()
        if self._trace is not None:
            try:
                self._clock.write_trace(self._trace)
            except OSError as error:  # no reason to lose what was generated
                self.note(f"--trace {self._trace} was not written ({error.strerror})")
            else:
                if missing := self._clock.untraced:
                    self.note(f"--trace {self._trace} has the first {MOST_TRACED:,} intervals; {missing:,} came later")

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, found: source.Source, unchecked: bool, trust_remote_code: bool) -> None:
        """Refuse a model whose tokens would not be its own, unless a person wants it all the same."""
        kind = found.config.model_type
        if unchecked:
            self.note(f"not checked that {kind} runs exactly (--unchecked)")
            return
        asking = f"checking that {kind} runs exactly (once per model and version)"
        require_exact(found, trust_remote_code=trust_remote_code, first=lambda: self.note(asking))

    def _conclude(self, run: Run) -> None:
        self.last_run = run.summary()
        for remark in run.remarks():
            self.note(remark)

    def _prepared(self, job: Job) -> Prepared:
        if self._ready is not None and self._ready.covers(job):
            return self._ready
        self._drop_engine()
        disk = self._budgets.asked["disk"]
        self.blueprint = cache_pages(self.blueprint, disk, self._progress("preparing pages"))
        if left := self.blueprint.converted_bytes:
            room = "what is free on disk" if disk is None else f"--disk-memory {format_bytes(disk)}"
            self.note(f"pages are converted whenever they are read: a cache of {format_bytes(left)} exceeds {room}")
        placement = self._placing.choose(job, self.ledger)
        ledger = self.ledger()
        offload: Path | None = None
        progress = self._progress("reading resident pages")
        with ExitStack() as undo:
            if placement.kv.get("disk") or placement.policy.activations.disk:
                offload = make_offload(self._offload_root)
                undo.callback(remove_offload, offload)
            heap = self._budgets.heap_watch(ledger)
            engine = assemble(self.blueprint, placement, self._device, self._clock, offload, progress, heap)
            undo.pop_all()
        if offload is not None:
            finalize(self, remove_offload, offload)  # for whoever does not close it
        self._ready = Prepared(engine, placement, job, ledger.budget, offload)
        return self._ready

    def _drop_engine(self) -> None:
        if self._ready is not None:
            self._ready.engine.close()
            if self._ready.offload is not None:
                remove_offload(self._ready.offload)
            self._ready = None

    def _progress(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self._event({"kind": "load", "what": what, "done": done, "total": total})


def _log(event: Mapping[str, Any]) -> None:
    """Say what a person should know where nobody listens."""
    if event["kind"] == "note":
        logging.getLogger("penstock").warning("%s", event["text"])
