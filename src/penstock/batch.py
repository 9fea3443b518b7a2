"""A batch job on one LLM: lines of a file in, an answer or an error for each out, and on from there at a restart."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.encoding import Item, TooLong, job_of
from penstock.errors import DISK_FULL, UserError
from penstock.generation import NotFinite, Run
from penstock.jobs.answers import Done, drop_errors, repair, scan
from penstock.jobs.errors import JobStopped, Tally
from penstock.jobs.identity import answer_id, identity
from penstock.jobs.job import JobFile, Settings, check_same_job
from penstock.jobs.paths import check_paths
from penstock.jobs.records import Record, answer_record, error_record, fault_record
from penstock.jobs.request import Parsed
from penstock.jobs.stop import Stop
from penstock.jobs.survey import Survey, lines_to_go, resumed, survey
from penstock.jobs.terms import Terms, Wish
from penstock.jobs.writer import Writer
from penstock.outlook import JobOutlook
from penstock.outputs import RequestOutput
from penstock.plan.types import Job
from penstock.sampling import DEFAULT_MAX_TOKENS, SamplingParams

if TYPE_CHECKING:
    from penstock.llm import LLM

SAMPLE = 512  # requests whose lengths stand for the job's
MOST_UNWRITTEN = 4096  # error lines that wait until it is known that the job can run
WAITING = 256  # requests that wait for room, so that the row of one that ends is taken at once
_MARGIN = 1.25  # prompts may have more tokens a byte than those of the sample
_HOPELESS = 16  # first rows of a job without finite logits, and none with them: it is not the requests


def run_batch(
    llm: "LLM",
    source: Path,
    out: Path,
    wish: Wish,
    job: JobFile | None = None,
    done: Done | None = None,
    stop: Stop | None = None,
) -> dict[str, Any]:
    """Answer every line of ``source`` that ``out`` has no answer to; returns the figures of the run.

    job, done: its file and a scan of the output, where the caller has made them already. What the survey of the input
    finds that a person may want to mend goes to ``llm.note``. Raises UserError before anything is written, and
    JobStopped for what can be mended and gone on from.
    """
    check_paths(source, out)
    with job or JobFile.open(out, overwrite=wish.overwrite) as job:
        if wish.overwrite:
            done = Done()
        elif done is None:
            done = scan(out)
        if job.stored is not None:
            llm.model.settle_as(str(job.stored.get("dtype")))
        check_same_job(out, len(done), job.stored, {**_made_by(llm), **wish.said()})
        terms = Terms(job.stored if job.stored is not None else _begun(llm, wish))
        done.retries = wish.retry_errors
        surveyed = resumed(source, job.progress.get("survey"), done) if job.stored is not None else None
        if surveyed is None:
            surveyed = survey(source, terms.fingerprint, done)
            surveyed.check_readable(source)
            surveyed.check_unchanged(out)
            for remark in surveyed.remarks(source, out):
                llm.note(remark)
        if llm.model.bits.free and (first := _sample(llm, source, surveyed, terms)):
            llm.model.settle(replace(job_of(first), prompts=surveyed.to_go))
            terms = Terms(_begun(llm, wish))
        if len(done):
            llm.note(f"{surveyed.to_go:,} to go")
        return _Work(llm, source, job, terms, done, surveyed, stop or Stop()).run()


def _made_by(llm: "LLM") -> Settings:
    """What the answers of a job depend on that no request says."""
    return {"model": llm.fingerprint, "dtype": llm.blueprint.precision.name}


def _begun(llm: "LLM", wish: Wish) -> Settings:
    """The settings of a job that begins."""
    return {**_made_by(llm), **wish.said(), "seed": wish.params.seed or 0, "chat": wish.chat is not False}


def _sample(llm: "LLM", source: Path, surveyed: Survey, terms: Terms) -> list[Item]:
    """The first requests of a job that can run, whose lengths stand for its own."""
    params, found = terms.params, list[Item]()
    for parsed in lines_to_go(source, surveyed, Done()):
        if parsed.fault is None:
            with suppress(UserError):
                found.append(_item(llm, parsed, terms.chat, params))
        if len(found) == SAMPLE:
            break
    return found


def _item(llm: "LLM", parsed: Parsed, chat: bool, params: SamplingParams) -> Item:
    """A request made ready. chat, params: what holds where it says nothing. UserError for what cannot be run."""
    chat = chat if parsed.kind == "plain" else parsed.kind == "chat"
    return llm.encoder.item(parsed.number - 1, parsed.prompt, parsed.params, chat, identity(parsed), params)


def _disk_full(cause: object) -> bool:
    return isinstance(cause, OSError) and cause.errno in DISK_FULL


class _Work:
    """Everything of one job from its settled terms to its last line."""

    def __init__(
        self, llm: "LLM", source: Path, job: JobFile, terms: Terms, done: Done, surveyed: Survey, stop: Stop
    ) -> None:
        self.llm, self.source, self.job, self.terms = llm, source, job, terms
        self.done, self.surveyed, self.stop = done, surveyed, stop
        self.params, self.fingerprint = terms.params, terms.fingerprint
        self.outlook = JobOutlook(surveyed, self._tell)
        self.answered = self.not_finite = 0
        self.errors = Tally() if done.retries else done.tally.copy()  # of all error lines that the output will hold
        self._errors_kept = self.errors.total
        self._parsed: dict[int, Parsed] = {}  # of the items that the engine has
        self._unwritten: list[Record] = []
        self._writer: Writer | None = None

    def run(self) -> dict[str, Any]:
        """Run to the end, or until the job is told to stop."""
        with ExitStack() as self._opened:
            items = self._items()
            first: list[Item] = []
            for item in items:
                first.append(item)
                if len(first) == SAMPLE or len(self._unwritten) > MOST_UNWRITTEN:
                    break
            run = self._start(first, items) if first else None
            if self._writer is None:
                self._open()
            if run is not None:
                self.stop.begins(run.stop)
                self._answer(run)
        self.job.save_progress(self.told(), every_s=0)
        return self._summary(run)

    def _open(self) -> None:
        """Begin to write: what was torn or is to run again goes, what could not be written until now comes."""
        if self.job.stored is None:
            self.job.store(self.terms.settings)
        if not (self.done.retries and drop_errors(self.job.out, self.done)):
            repair(self.job.out, self.done)
        about: dict[str, Any] = {"input": str(self.source), "lines": self.surveyed.lines}
        if not self.surveyed.is_kept:
            about["survey"] = self.surveyed.kept()
        self.job.save_progress(about, every_s=0)
        self._writer = self._opened.enter_context(Writer(self.job.out))
        self._writer.write(self._unwritten)
        self._unwritten.clear()

    def _start(self, first: list[Item], items: Iterator[Item]) -> Run:
        """A run on memory laid out for the whole job; where that does not hold the longest line, for the others."""
        everything = chain(first, items)
        try:
            return self.llm.run(everything, self._job(first, longest=True), self.outlook, WAITING)
        except UserError as refusal:
            if _disk_full(refusal.__cause__):
                raise JobStopped(f"{refusal}, or make room there and start the same command again") from refusal
            try:
                return self.llm.run(everything, self._job(first, longest=False), self.outlook, WAITING)
            except UserError:
                raise refusal from None
        except OSError as error:
            raise self._stopped(error) from error

    def _job(self, first: list[Item], longest: bool) -> Job:
        """The sample, and by the bytes of all prompts what lies beyond it."""
        sample, surveyed = job_of(first), self.surveyed
        mean, prompt, total = sample.mean_tokens, sample.longest_prompt, sample.longest_tokens
        if surveyed.to_go > len(first):
            usual = self.params.max_tokens or DEFAULT_MAX_TOKENS
            tokens = surveyed.prompt_bytes * self.outlook.tokens_a_byte
            mean = round((tokens + surveyed.max_tokens + surveyed.unsaid * usual) / surveyed.to_go) + 1
            prompt = max(prompt, round(surveyed.longest_prompt_bytes * self.outlook.tokens_a_byte * _MARGIN) + 1)
            total = max(total, prompt + max(usual if surveyed.unsaid else 0, surveyed.longest_max_tokens))
        if not longest:
            prompt, total = min(prompt, mean), mean
        context = self.llm.blueprint.context or total
        lengths = sample.lengths
        return Job(surveyed.to_go, min(mean, total, context), min(total, context), min(prompt, context), lengths)

    def _answer(self, run: Run) -> None:
        try:
            for item, output in run:
                self._write(self._record(item, self._parsed.pop(item.index), output))
                self.not_finite += isinstance(output, NotFinite)
                if self.not_finite == _HOPELESS and not self.answered + self.done.answered:
                    what = f"stopped, since none of the first {_HOPELESS} could be answered; {output}"
                    raise JobStopped(f"{what}. The same command with --retry-errors runs them again")
        except BrokenPipeError:  # whoever read the progress has gone
            raise
        except OSError as error:
            raise self._stopped(error) from error
        except UserError as error:  # no mistake by now, but files that changed, went away or cannot grow
            raise self._stopped(error) from error

    def _stopped(self, error: OSError | UserError) -> JobStopped:
        """What happened to a file of the engine's own (weights, KV that cannot grow) or to the input."""
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(error, OSError):
            where = error.filename or f"a file of KV or activations in {self.llm.offload_dir}"
            what = f"stopped by {where} ({error.strerror or error})"
        else:
            what = f"stopped: {error}"
        advice = (
            f"Free room in {self.llm.offload_dir} or use another --offload-dir" if _disk_full(cause) else "See to it"
        )
        return JobStopped(
            f"{what}. {advice}, then start the same command again; {self.answered:,} answers of this run are kept"
        )

    def _record(self, item: Item, parsed: Parsed, output: RequestOutput | UserError) -> Record:
        id = answer_id(self.fingerprint, parsed)
        if isinstance(output, UserError):
            code = "not_finite" if isinstance(output, NotFinite) else "too_long"
            return error_record(parsed, id, code, str(output))
        answer, most = output.outputs[0], item.sampling.max_tokens
        if item.is_cut(answer.finish_reason, len(answer.token_ids)):
            cut = f"its answer ended after {len(answer.token_ids):,} of {most:,} tokens, where memory for KV was full"
            return error_record(parsed, id, "too_long", f"{cut}: give more memory or a smaller max_tokens")
        self.answered += 1
        return answer_record(parsed, id, output, self.llm.name, int(time.time()))

    def _items(self) -> Iterator[Item]:
        """The requests that can run, each as its line is reached; the others get their error line."""
        for parsed in lines_to_go(self.source, self.surveyed, self.done):
            if self.stop.asked:
                return
            id = answer_id(self.fingerprint, parsed)
            if parsed.fault is not None:
                self._write(fault_record(parsed, id))
                continue
            try:
                item = _item(self.llm, parsed, self.terms.chat, self.params)
            except UserError as refusal:
                code = "too_long" if isinstance(refusal, TooLong) else "invalid_request"
                self._write(error_record(parsed, id, code, str(refusal)))
                self.outlook.refused(parsed)
                continue
            self._parsed[item.index] = parsed
            self.outlook.read(parsed, item)
            yield item

    def _write(self, record: Record) -> None:
        if record["error"] is not None:
            self.errors.add(record["error"]["code"], record["line"])
        if self._writer is not None:
            self._writer.write([record])
            return
        self._unwritten.append(record)
        if len(self._unwritten) > MOST_UNWRITTEN and not self._parsed:
            self._open()  # nothing but faults so far: no engine will be asked for before they are many more

    def told(self) -> dict[str, Any]:
        """How far the job is, for whoever asks from elsewhere."""
        ended = self.answered + self.errors.total - self._errors_kept
        return {
            "answered": self.done.answered + self.answered,
            "errors": self.errors.total,
            "to_go": self.surveyed.lines - self.surveyed.done - ended,
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
            "context_full": run.context_full if run is not None else 0,
            "errors_by_code": dict(self.errors.counts),
            "first_error_lines": dict(self.errors.first),
            "settings": dict(self.terms.settings),
        }
