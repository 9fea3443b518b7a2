"""A batch job on one LLM: lines of a file in, an answer or an error for each out, and on from there at a restart."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.encoding import Item, job_of
from penstock.errors import UserError
from penstock.generation import Run
from penstock.jobs.answers import Done, drop_errors, repair, scan
from penstock.jobs.errors import JobStopped
from penstock.jobs.identity import answer_id, identity
from penstock.jobs.job import JobFile, Settings, check_same_job
from penstock.jobs.paths import check_paths
from penstock.jobs.records import Record, answer_record, error_record, fault_record
from penstock.jobs.request import Parsed
from penstock.jobs.survey import Survey, lines_to_go, survey
from penstock.jobs.writer import Writer
from penstock.outlook import JobOutlook
from penstock.plan.types import Job
from penstock.sampling import DEFAULT_MAX_TOKENS, SamplingParams

if TYPE_CHECKING:
    from penstock.llm import LLM

SAMPLE = 512  # requests whose lengths stand for the job's
MOST_UNWRITTEN = 4096  # error lines that wait until it is known that the job can run
WAITING = 256  # requests that wait for room at least, so that the row of one that ends is taken at once


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person asks of a job; settings where None come from the stored job, or hold their usual value."""

    params: SamplingParams
    chat: bool | None = None
    overwrite: bool = False
    retry_errors: bool = False

    def said(self) -> Settings:
        """The settings that were named, as they are stored."""
        stop_ids = self.params.stop_token_ids
        stop = [self.params.stop] if isinstance(self.params.stop, str) else self.params.stop
        lists = {"stop": stop and list(stop), "stop_token_ids": stop_ids and list(stop_ids)}
        return {**asdict(self.params), **lists, "chat": self.chat}

    def settled(self, stored: Settings | None) -> tuple[SamplingParams, bool]:
        """Sampling and whether plain prompts are chats: as stored, else as said."""
        said = stored if stored is not None else self.said()
        params = SamplingParams(**{name: said.get(name) for name in asdict(SamplingParams())})
        return params, said.get("chat") is not False


def run_batch(
    llm: "LLM", source: Path, out: Path, wish: Wish, job: JobFile | None = None, batch: "Batch | None" = None
) -> dict[str, Any]:
    """Answer every line of ``source`` that ``out`` has no answer to; returns the figures of the run.

    job: its file, where the caller has opened it already. batch: what is told to stop from a signal.
    Raises UserError before anything is written, and JobStopped for what can be mended and gone on from.
    """
    check_paths(source, out)
    batch = batch or Batch()
    with job or JobFile.open(out, overwrite=wish.overwrite) as job:
        done = Done() if wish.overwrite else scan(out)
        settings = {"model": llm.fingerprint, "dtype": llm.blueprint.precision.name}
        params, chat = wish.settled(job.stored)
        asked = {**settings, **wish.said(), "seed": wish.params.seed}
        check_same_job(out, len(done), job.stored, asked)
        if job.stored is None:
            said = {**wish.said(), "seed": params.seed or 0, "chat": chat}
            params, _ = wish.settled(said)
            settings = {**settings, **said}
        else:
            settings = dict(job.stored)
        repair(out, done)
        if wish.retry_errors and drop_errors(out, done):
            done = scan(out)
        surveyed = survey(source, _text(settings), done)
        surveyed.check_unchanged(out)
        work = _Work(llm, source, out, job, settings, params, chat, done, surveyed, batch)
        return work.run()


class Batch:
    """The handle of a job that runs: what a signal needs of it."""

    def __init__(self) -> None:
        self.started = self.stopping = False
        self._run: Run | None = None

    def stop(self) -> None:
        """End after the sweep that is under way."""
        self.stopping = True
        if self._run is not None:
            self._run.stop()

    def begins(self, run: Run) -> None:
        """The job's engine is there."""
        self.started, self._run = True, run
        if self.stopping:
            run.stop()


class _Work:
    """Everything of one job from its settled settings to its last line."""

    def __init__(
        self,
        llm: "LLM",
        source: Path,
        out: Path,
        job: JobFile,
        settings: Settings,
        params: SamplingParams,
        chat: bool,
        done: Done,
        surveyed: Survey,
        batch: Batch,
    ) -> None:
        self.llm, self.source, self.out, self.job = llm, source, out, job
        self.settings, self.params, self.chat = settings, params, chat
        self.fingerprint = _text(settings)
        self.done, self.surveyed, self.batch = done, surveyed, batch
        self.outlook = JobOutlook(surveyed, self._tell)
        self.answered = 0
        self.errors: Counter[str] = Counter()
        self._parsed: dict[int, Parsed] = {}  # of the items that the engine has
        self._unwritten: list[Record] = []
        self._writer: Writer | None = None

    def run(self) -> dict[str, Any]:
        """Run to the end, or until the batch is told to stop."""
        with ExitStack() as self._opened:
            items = self._items()
            first = list(islice(items, SAMPLE))
            run = self._start(first, items) if first else None
            self._open()
            if run is not None:
                self.batch.begins(run)
                self._answer(run)
        self.job.save_progress(self.told(), every_s=0)
        return self._summary(run)

    def _open(self) -> Writer:
        """The output, from now on written to, with what could not be run until now."""
        if self._writer is None:
            if self.job.stored is None:
                self.job.store(self.settings)
            self.job.save_progress({"input": str(self.source), "lines": self.surveyed.lines}, every_s=0)
            self._writer = self._opened.enter_context(Writer(self.out, self.job))
            self._writer.write(self._unwritten)
            self._unwritten.clear()
        return self._writer

    def _start(self, first: list[Item], items: Iterator[Item]) -> Run:
        """A run on memory laid out for the whole job; a line that is longer than memory holds does not count."""
        everything = chain(first, items)
        try:
            return self.llm.run(everything, self._job(first, longest=True), self.outlook, WAITING)
        except UserError as refusal:
            try:
                return self.llm.run(everything, self._job(first, longest=False), self.outlook, WAITING)
            except UserError:
                raise refusal from None

    def _job(self, first: list[Item], longest: bool) -> Job:
        sample, surveyed = job_of(first), self.surveyed
        prompt, total = sample.longest_prompt, sample.longest_tokens
        if not longest:
            prompt = total = sample.mean_tokens
        elif surveyed.to_go > len(first):
            prompt = max(prompt, int(surveyed.longest_prompt_bytes * self.outlook.tokens_a_byte) + 1)
            usual = self.params.max_tokens or DEFAULT_MAX_TOKENS
            total = max(total, prompt + max(usual if surveyed.unsaid else 0, surveyed.longest_max_tokens))
            context = self.llm.blueprint.context
            if context is not None:
                prompt, total = min(prompt, context), min(total, context)
        return Job(surveyed.to_go, min(sample.mean_tokens, total), total, prompt)

    def _answer(self, run: Run) -> None:
        try:
            for item, output in run:
                parsed = self._parsed.pop(item.index)
                id = answer_id(self.fingerprint, parsed)
                if isinstance(output, UserError):
                    self._write(error_record(parsed, id, "too_long", str(output)))
                else:
                    self.answered += 1
                    self._write(answer_record(parsed, id, output, self.llm.name, int(time.time())))
        except OSError as error:  # files of the engine's own: weights that went away, KV that cannot grow
            where = (
                f" {error.filename}" if error.filename else f" a file of KV or activations in {self.llm.offload_dir}"
            )
            raise JobStopped(
                f"stopped by{where}: {error.strerror or error}. Free room there or use another --offload-dir, then"
                f" start the same command again: {self.answered:,} answers of this run are kept"
            ) from error

    def _items(self) -> Iterator[Item]:
        """The requests that can run, each as its line is reached; the others get their error line."""
        for parsed in lines_to_go(self.source, self.surveyed, self.done):
            if self.batch.stopping:
                return
            id = answer_id(self.fingerprint, parsed)
            if parsed.fault is not None:
                self._write(fault_record(parsed, id))
                continue
            chat = self.chat if parsed.kind == "plain" else parsed.kind == "chat"
            try:
                item = self.llm.encoder.item(
                    parsed.number - 1, parsed.prompt, parsed.params, chat, identity(parsed), self.params
                )
            except UserError as refusal:
                self._write(error_record(parsed, id, "invalid_request", str(refusal)))
                self.outlook.refused(parsed)
                continue
            self._parsed[item.index] = parsed
            self.outlook.read(parsed, item)
            yield item

    def _write(self, record: Record) -> None:
        if record["error"] is not None:
            self.errors[record["error"]["code"]] += 1
        if self._writer is not None:
            self._writer.write([record])
            return
        self._unwritten.append(record)
        if len(self._unwritten) > MOST_UNWRITTEN:
            self._open()

    def told(self) -> dict[str, Any]:
        """How far the job is, for whoever asks from elsewhere."""
        errors = self.errors.total()
        return {
            "answered": self.done.answered + self.answered,
            "errors": self.done.errors + errors,
            "to_go": self.surveyed.lines - self.surveyed.done - self.answered - errors,
        }

    def _tell(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        said = self.told()
        self.job.save_progress({**said, "tok_s": event["tok_s"], "eta_s": event["eta_s"]})
        return {**event, "errors": said["errors"], "prompts_done": said["answered"], "prompts": self.surveyed.lines}

    def _summary(self, run: Run | None) -> dict[str, Any]:
        figures = run.summary() if run is not None and run.account.sweeps else {}
        return {
            **figures,
            **self.told(),
            "lines": self.surveyed.lines,
            "answered_before": self.done.answered,
            "errors_before": self.done.errors,
            "errors_by_code": dict(self.errors),
            "shared_tokens": run.engine.scheduler.shared_tokens if run is not None else 0,
            "settings": dict(self.settings),
        }


def _text(settings: Settings) -> str:
    """The job's fingerprint: what its answers depend on besides their requests."""
    return repr(sorted(settings.items()))
