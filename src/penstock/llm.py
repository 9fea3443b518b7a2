"""``LLM``: a model, its budgets and its placement, ready to generate."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import ref

from penstock.asked import AskedMemory, Shared, asked_for, check_here, check_kinds
from penstock.batch import run_batch
from penstock.bits import AskedBits, asked_bits, check_planned
from penstock.encoding import Item, Prompt, held_bytes, job_of
from penstock.engine.build import Blueprint
from penstock.errors import UserError
from penstock.generation import Run, Surroundings
from penstock.jobs.terms import Wish
from penstock.memory.allocator import keep_little
from penstock.memory.clock import check_trace
from penstock.model.fingerprint import fingerprint
from penstock.opened import OpenedModel
from penstock.outlook import Outlook
from penstock.outputs import RequestOutput
from penstock.placing import Placing, bits_of_plan
from penstock.plan.policy import Tier
from penstock.plan.saved import saved_plan
from penstock.plan.types import Job, Ledger
from penstock.preparing import Prepared, prepare
from penstock.runtime import Event, Runtime
from penstock.sampling import SamplingParams

READ_AHEAD = 1024  # prompts of a stream that wait for room at most


class LLM:
    """A model on memory tiers. Keywords mirror the command line's flags.

    model: directory, GGUF file, hub id or ``demo``. weight_bits, kv_bits: 4, 8, 16 or ``auto``, which is decided by the
    first job. gpu_memory, cpu_memory, disk_memory: budgets ("4GiB" or bytes). weights, kv, activations: shares
    ("cpu=40%,disk=60%"). plan: a file that ``penstock plan --save`` wrote; its budgets hold where none is given. trace:
    the file that ``close`` writes it to. page_bytes: largest page. on_event: called with dictionaries whose ``kind`` is
    ``note`` (``text``), ``load`` (``what``; ``done`` of ``total``, bytes, or seconds where ``unit`` is ``s``),
    ``sweep`` (progress after each) or ``text`` (new ``text`` of prompt ``index``, where it is the only one or has stop
    texts); without it notes go to the logger ``penstock``. The others mirror flags: ``penstock generate --help``.

    last_run: figures of the last ``generate``, as ``report.Account.summary`` describes them. Mistakes and refusals
    raise UserError with one line. Use it as a context manager, or call ``close``.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        weight_bits: AskedBits = None,
        lm_head_bits: int | None = None,
        kv_bits: AskedBits = None,
        allow_4bit: bool = False,
        device: str = "auto",
        gpu_memory: str | int | None = None,
        cpu_memory: str | int | None = None,
        disk_memory: str | int | None = None,
        offload_dir: str | os.PathLike[str] | None = None,
        weights: Shared = None,
        kv: Shared = None,
        activations: Shared = None,
        attention: str | None = None,
        compute_cpu_layers: int | str | None = None,
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
        paths = {"model": model, "offload_dir": offload_dir, "plan": plan, "trace": trace}
        check_kinds({"dtype": dtype, "device": device, "attention": attention}, paths)
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
            compute_cpu_layers=compute_cpu_layers,
        )
        self._saved = None if plan is None else saved_plan(Path(plan), self.asked)
        bits = asked_bits(weight_bits, lm_head_bits, kv_bits, allow_4bit)
        check_planned(bits, self.asked, plan)
        if self._saved is not None:
            bits = bits_of_plan(self._saved, bits)
        if trace is not None:
            check_trace(trace)
        memory: AskedMemory = {"gpu": gpu_memory, "cpu": cpu_memory, "disk": disk_memory}
        check_here(self.asked, memory, device, None if self._saved is None else self._saved.placement)
        keep_little()
        planned = None if self._saved is None else self._saved.bounds
        self._runtime = Runtime.open(device, memory, offload_dir, trace, on_event, planned)
        self.model = OpenedModel(
            model,
            self._runtime,
            bits,
            self.asked,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            random_weights=random_weights,
            unchecked=unchecked,
            page_bytes=page_bytes,
        )
        self.tokenizer, self.encoder = self.model.tokenizer, self.model.encoder
        self._ready: Prepared | None = None
        self._closed = False
        self._live: Callable[[], Run | None] = lambda: None
        self.last_run: dict[str, Any] = {}

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        chat: bool = False,
    ) -> list[RequestOutput]:
        """Generate for every prompt; results in input order.

        prompts: text, or ``{"prompt"}``, ``{"messages"}`` or ``{"prompt_token_ids"}``, with settings of that prompt
        beside it (``"max_tokens"``) as in a line of a batch file. chat: wrap plain text in the model's chat template
        where it has one. Raises UserError for what cannot be run, and where the logits of a row are not finite.
        """
        listed: Sequence[Prompt] = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        given = SamplingParams() if sampling_params is None else sampling_params
        settings = list(given) if isinstance(given, Sequence) else [given] * len(listed)
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
        job = replace(job_of(items), held=held_bytes(items))
        run = self.run(items, job, Outlook(len(items)))
        outputs: dict[int, RequestOutput] = {}
        for item, output in run:
            if isinstance(output, UserError):
                raise output
            outputs[item.index] = output
        self._conclude(run)
        return [outputs[item.index] for item in items]

    def stream(
        self, prompts: Iterable[Prompt], sampling_params: SamplingParams | None = None, *, chat: bool = False
    ) -> Iterator[RequestOutput]:
        """Generate for prompts from any iterable, read as rows become free; results as they end.

        prompts: as ``generate`` takes them. ``request_id`` is a prompt's place in the input. Memory is laid out for the
        lengths of the first READ_AHEAD. Raises UserError for a prompt that cannot be run, when its turn comes.
        """
        asked = sampling_params or SamplingParams()
        items = (self.encoder.item(i, prompt, asked, chat) for i, prompt in enumerate(prompts))
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
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several."""
        several = [messages] if messages and isinstance(messages[0], Mapping) else messages
        return self.generate([{"messages": conversation} for conversation in several], sampling_params)

    def run_batch(
        self,
        source: str | os.PathLike[str],
        out: str | os.PathLike[str],
        sampling_params: SamplingParams | None = None,
        *,
        chat: bool | None = None,
        overwrite: bool = False,
        retry_errors: bool = False,
    ) -> dict[str, Any]:
        """Answer every line of a batch file, appending to ``out``; called again, it goes on where it was stopped.

        source: lines in OpenAI's batch form, or ``{"prompt"}``, ``{"messages"}`` or ``{"prompt_token_ids"}``; gzip and
        zstd too. sampling_params: what holds where a line says nothing. Returns the figures of the run, ``last_run``
        with what was answered. Raises UserError before anything is written, and penstock.jobs.errors.JobStopped where
        the job was stopped by something else and can go on.
        """
        wish = Wish(sampling_params or SamplingParams(), chat, overwrite, retry_errors)
        self.last_run = run_batch(self, Path(source), Path(out), wish)
        return self.last_run

    def note(self, text: str) -> None:
        """Tell whoever listens (``on_event``) what a person should know."""
        self._runtime.note(text)

    @property
    def blueprint(self) -> Blueprint:
        """The model as pages and numbers; another one once bits are chosen, or pages lie in the page cache."""
        return self.model.blueprint

    @property
    def name(self) -> str:
        """The model's name, as answers give it."""
        return self.model.source.name

    @cached_property
    def fingerprint(self) -> str:
        """What tells the model from others, whatever its files are called."""
        return fingerprint(self.model.source)

    @property
    def offload_dir(self) -> Path:
        """Where KV and activations on disk go."""
        return self._runtime.offload_root

    def run(self, items: Iterable[Item], job: Job, outlook: Outlook, ahead: int | None = None) -> Run:
        """A run of the items, on an engine for the job: the one at hand where it is large enough, else a new one."""
        if self._closed:
            raise UserError("this LLM is closed: make a new one")
        if (live := self._live()) is not None and live.live:
            raise UserError("a stream of this LLM is not at its end: read it to there or close it before the next run")
        self.model.settle(job)
        prepared = self._prepared(job)
        prepared.predicted = self._placing.predict(prepared.placement, job, prepared.budget)
        if prepared.predicted is not None and job.prompts > 1:
            self._placing.tell(prepared.predicted, job)
        around = Surroundings(self.blueprint, self.tokenizer, self._runtime)
        run = Run(around, prepared, items, outlook, ahead)
        self._live = ref(run)
        return run

    @property
    def _placing(self) -> Placing:
        runtime = self._runtime
        return Placing(self.blueprint, self.asked, self._saved, self.compute_tier, runtime.offload_root, runtime.event)

    @property
    def compute_tier(self) -> Tier:
        """The tier that computes, with the memory beside it: ``gpu`` or ``cpu``."""
        return self._runtime.device.compute_tier

    def ledger(self) -> Ledger:
        """Budgets in force, and what is taken of them now."""
        return self._runtime.ledger(self.blueprint.cached_bytes)

    def close(self) -> None:
        """Give back memory, threads and files; write the trace where one was asked for. Can be called twice."""
        if self._closed:
            return
        self._closed = True
        self._drop_engine()
        self.model.close()
        self._runtime.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _conclude(self, run: Run) -> None:
        self.last_run = run.summary()
        for remark in run.remarks():
            self.note(remark)

    def _prepared(self, job: Job) -> Prepared:
        """An engine for the job: the one at hand where that serves it too, else a new one."""
        if self._ready is None or not self._ready.covers(job):
            self._drop_engine()
            self.model.cache_pages()
            self._ready = prepare(self.blueprint, job, self._placing, self._runtime)
        return self._ready

    def _drop_engine(self) -> None:
        if self._ready is not None:
            self._ready.close()
            self._ready = None
