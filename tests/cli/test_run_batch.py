"""``run-batch`` on a stand-in for the engine: what it is asked for, what a person is told, and the exit status."""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.cli.fake_llm import RUN, Engine

from penstock.cli import main
from penstock.errors import UserError
from penstock.jobs import terms
from penstock.jobs.errors import JobStopped
from penstock.jobs.job import JobFile

SETTINGS = {"model": "m", "dtype": "float32", "seed": 0, "chat": True, "max_tokens": 5, "stop": ["a"]}
ANSWERED: dict[str, Any] = {
    "lines": 4,
    "answered": 4,
    "errors": 0,
    "to_go": 0,
    "context_full": 0,
    "errors_by_code": {},
    "first_error_lines": {},
}


@dataclass
class Wish:
    """What a person asked for."""

    params: Any
    chat: bool | None
    overwrite: bool
    retry_errors: bool

    def said(self) -> dict[str, Any]:
        return {"max_tokens": self.params.max_tokens}


@dataclass
class Batch:
    """What a test sets before and reads after a command."""

    run: dict[str, Any] = field(default_factory=lambda: {**RUN, **ANSWERED, "prompts": 4})
    wish: Wish | None = None
    asked: tuple[Any, ...] = ()
    remarks: list[str] = field(default_factory=list)
    during: Callable[[Any], None] = lambda stop: None
    failure: BaseException | None = None


@pytest.fixture
def batch(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Batch:
    """A stand-in for ``penstock.batch``; the files of the job are real."""
    batch = Batch()

    def run_batch(llm: Any, source: Path, out: Path, wish: Wish, job: Any, done: Any, stop: Any) -> dict[str, Any]:
        batch.wish, batch.asked = wish, (source, out, job.stored, None if done is None else len(done))
        for event in engine.events:
            llm._on_event(event)
        for remark in batch.remarks:
            llm.note(remark)
        batch.during(stop)
        if batch.failure is not None:
            raise batch.failure
        return batch.run

    module = ModuleType("penstock.batch")
    module.run_batch = run_batch  # type: ignore[attr-defined]  # a module made on the spot
    monkeypatch.setitem(sys.modules, "penstock.batch", module)
    monkeypatch.setattr(terms, "Wish", Wish)
    return batch


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """-i and -o of a job with four lines."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n' * 4)
    return ["-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")]


def answer(number: int, code: str | None = None) -> str:
    error = None if code is None else {"code": code, "message": ""}
    head = {"id": f"batch_req_{number:024x}", "custom_id": f"line-{number}", "line": number, "implicit_id": True}
    return json.dumps({**head, "response": None, "error": error}) + "\n"


def begun(out: Path, lines: str) -> None:
    """A job that was stopped."""
    JobFile.open(out, SETTINGS).close()
    out.write_text(lines)


def test_flags_are_passed_on(engine: Engine, batch: Batch, files: list[str]) -> None:
    words = "--rows 3 --cpu-memory 2GiB --kv disk=100% --max-tokens 7 --stop a --no-chat --retry-errors --overwrite"
    assert main(["run-batch", "demo", *files, *words.split()]) == 0
    given = {name: engine.asked[name] for name in ("model", "rows", "cpu_memory", "kv", "dtype")}
    assert given == {"model": "demo", "rows": 3, "cpu_memory": "2GiB", "kv": "disk=100%", "dtype": "auto"}
    assert batch.wish is not None
    assert (batch.wish.chat, batch.wish.overwrite, batch.wish.retry_errors) == (False, True, True)
    assert {name: said for name, said in vars(batch.wish.params).items() if said is not None} == {
        "max_tokens": 7,
        "stop": ["a"],
    }
    assert batch.asked[:3] == (Path(files[1]), Path(files[3]), None)


def test_what_is_not_said_stays_open(batch: Batch, files: list[str]) -> None:
    assert main(["run-batch", "demo", *files]) == 0
    assert batch.wish is not None
    assert set(vars(batch.wish.params).values()) == {None}
    assert (batch.wish.chat, batch.wish.overwrite, batch.wish.retry_errors) == (None, False, False)


def test_the_end_says_what_happened_and_why_lines_have_errors(
    engine: Engine, batch: Batch, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    engine.events = [{"kind": "note", "text": "computing in float32"}]
    batch.run |= {
        "answered": 1997,
        "errors": 4,
        "errors_by_code": {"invalid_json": 1, "too_long": 2, "duplicate": 1},
        "first_error_lines": {"invalid_json": 812, "too_long": 7, "duplicate": 1200},
    }
    batch.remarks = ["in.jsonl: 1 line cannot be run, first line 812: the line is not JSON"]
    out = files[3].replace("out.jsonl", "answers.jsonl")
    assert main(["run-batch", "demo", *files[:3], out]) == 0
    printed, err = capsys.readouterr()
    assert printed == ""
    *notes, table = err.splitlines()[:3]
    assert notes == ["computing in float32", *batch.remarks]
    assert table == "4 prompts · 12 tokens in · 9 out · 1.1 s"
    told = "1,997 answered, 4 with errors: 2 too long, 1 not JSON (line 812), 1 duplicate (line 1,200)"
    assert err.splitlines()[-1] == f"answers.jsonl  {told}"


def test_a_job_that_had_nothing_to_run_is_one_line(
    batch: Batch, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    batch.run = ANSWERED
    assert main(["run-batch", "demo", *files]) == 0
    assert capsys.readouterr() == ("", "out.jsonl   4 answered\n")


def test_answers_that_the_context_ended_are_counted(
    batch: Batch, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    batch.run = {**ANSWERED, "context_full": 2}
    assert main(["run-batch", "demo", *files]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "2 answers of this run ended where the model's context was full, before max_tokens (finish_reason length)",
        "out.jsonl   4 answered",
    ]


def test_json_is_one_value_and_progress_is_json_lines(
    engine: Engine, batch: Batch, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    engine.events = [{"kind": "note", "text": "computing in float32"}]
    assert main(["run-batch", "demo", *files, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"run": batch.run}
    assert [json.loads(line) for line in err.splitlines()] == engine.events


def test_a_second_start_says_what_is_done_and_goes_on_with_its_settings(
    engine: Engine, batch: Batch, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    begun(Path(files[3]), answer(1) + answer(2) + answer(3, "too_long"))
    assert main(["run-batch", "demo", *files]) == 0
    told = "2 answered before (1 error, --retry-errors runs them again); going on with max_tokens 5, stop ['a']"
    assert capsys.readouterr().err.splitlines()[0] == told
    assert engine.asked["dtype"] == "float32/float32/float32"
    assert batch.asked[2:] == (SETTINGS, 3)
    assert main(["run-batch", "demo", *files, "--retry-errors", "--dtype", "bfloat16"]) == 0
    assert "(1 error, which run again)" in capsys.readouterr().err
    assert engine.asked["dtype"] == "bfloat16", "what is said is for the job to refuse"


def test_a_contradiction_is_refused_before_the_model_is_read(
    engine: Engine, batch: Batch, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    begun(Path(files[3]), answer(1))
    assert main(["run-batch", "demo", *files, "--max-tokens", "6"]) == 2
    told = "penstock: out.jsonl holds 1 line of another run (max_tokens 5, now 6). Use another -o, or --overwrite.\n"
    assert capsys.readouterr() == ("", told)
    assert engine.asked == {}


def test_answers_of_nobody_knows_what_are_refused_before_the_model_is_read(
    engine: Engine, batch: Batch, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(files[3]).write_text(answer(1))
    assert main(["run-batch", "demo", *files]) == 2
    assert "out.jsonl holds 1 line, and out.jsonl.job does not say what made them" in capsys.readouterr().err
    assert engine.asked == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    assert main(["run-batch", "demo", *files, "--overwrite"]) == 0


def test_an_input_that_cannot_be_read_any_further_stops_the_job(
    batch: Batch, files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_paths(source: Path, out: Path) -> None:
        raise JobStopped("in.jsonl cannot be read any further (Input/output error)")

    monkeypatch.setattr("penstock.jobs.paths.check_paths", check_paths)
    assert main(["run-batch", "demo", *files]) == 1
    assert capsys.readouterr().err == "penstock: in.jsonl cannot be read any further (Input/output error)\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "run-batch needs MODEL, -i FILE and -o FILE"),
        (["demo", "-i", "{in}"], "run-batch needs MODEL, -i FILE and -o FILE"),
        (["demo", "-i", "-", "-o", "{out}"], "takes no standard input"),
        (["demo", "-i", "{in}", "-o", "{in}"], "would be written over"),
        (["demo", "-i", "{in}.none", "-o", "{out}"], "in.jsonl.none"),
        (["demo", "-i", "{in}", "-o", "{out}/no/out.jsonl"], "create it first"),
        (["demo", "-i", "{in}", "-o", "{out}", "--rows", "0"], "--rows"),
        (["--status", "{out}"], "no job of"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    engine: Engine,
    batch: Batch,
    files: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert main(["run-batch", *(word.replace("{in}", files[1]).replace("{out}", files[3]) for word in words)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("penstock: ") and err.count("\n") == 1
    assert message in err
    assert engine.asked == {}, "refused before the engine is touched"
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_refusals_of_the_engine_leave_nothing(
    batch: Batch, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.failure = UserError("--cpu-memory 1MiB is too small; the least that works is 540MiB")
    assert main(["run-batch", "demo", *files]) == 2
    assert capsys.readouterr() == ("", f"penstock: {batch.failure}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_job_that_was_stopped_has_status_1_and_says_what_to_do(
    batch: Batch, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    batch.failure = JobStopped("no room left for out.jsonl: free some there, then start the same command again")
    assert main(["run-batch", "demo", *files]) == 1
    assert capsys.readouterr() == ("", f"penstock: {batch.failure}\n")


def test_a_fault_of_ours_is_not_dressed_up_as_a_mistake(batch: Batch, files: list[str]) -> None:
    batch.failure = KeyError("layer")
    with pytest.raises(KeyError):
        main(["run-batch", "demo", *files])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_the_sweep_end(
    batch: Batch, files: list[str], capfd: pytest.CaptureFixture[str], number: int
) -> None:
    halted = []

    def during(stop: Any) -> None:
        stop.begins(lambda: halted.append(True))
        os.kill(os.getpid(), number)

    batch.during = during
    batch.run |= {"answered": 2, "errors": 1, "to_go": 1}
    before = signal.getsignal(signal.SIGINT)
    assert main(["run-batch", "demo", *files]) == 130
    assert halted == [True]
    said = capfd.readouterr().err.splitlines()
    assert said[:2] == ["", "stopping at the end of this sweep (Ctrl-C again: at once)"]
    assert said[2] == "4 prompts · 12 tokens in · 9 out · 1.1 s", "the summary of what was done"
    assert said[-1] == "2 of 4 answered, 1 with errors. The same command goes on where this stopped."
    assert signal.getsignal(signal.SIGINT) == before
    assert main(["run-batch", "demo", *files, "--json"]) == 130
    told = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert told == [{"kind": "note", "text": "stopping at the end of this sweep (Ctrl-C again: at once)"}]


def test_a_signal_in_the_last_sweep_is_no_interruption(
    batch: Batch, files: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    def during(stop: Any) -> None:
        stop.begins(lambda: None)
        os.kill(os.getpid(), signal.SIGINT)

    batch.during = during
    assert main(["run-batch", "demo", *files]) == 0
    assert capfd.readouterr().err.splitlines()[-1] == "out.jsonl   4 answered"


@pytest.mark.parametrize("runs", [True, False])
def test_the_second_signal_and_one_before_any_sweep_stop_at_once(
    batch: Batch, files: list[str], capfd: pytest.CaptureFixture[str], runs: bool
) -> None:
    def during(stop: Any) -> None:
        if runs:
            stop.begins(lambda: None)
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    batch.during = during
    assert main(["run-batch", "demo", *files]) == 130
    told = "penstock: stopped at once; the same command goes on with what was answered"
    assert capfd.readouterr().err.splitlines()[-1] == told


def test_status_says_how_far_a_job_is(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(files[3])
    with JobFile.open(out, SETTINGS) as job:
        job.save_progress({"lines": 4, "answered": 1, "errors": 1, "to_go": 2, "tok_s": 13.6, "eta_s": 90}, every_s=0)
        out.write_text(answer(1) + answer(2, "too_long"))
        assert main(["run-batch", "--status", str(out)]) == 0
        told = (
            f"1 of 4 answered · 1 with errors · 2 to go · running (pid {os.getpid()}) · 13.6 tok/s · 1 min 30 s left\n"
        )
        assert capsys.readouterr() == (told, "")
    assert main(["run-batch", "--status", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["to_go"], found["pid"], found["settings"]) == (2, None, SETTINGS)
    out.write_text("".join(answer(number) for number in range(1, 5)))
    assert main(["run-batch", "--status", str(out)]) == 0
    assert capsys.readouterr().out == "4 of 4 answered · 0 with errors · 0 to go · done\n"


def test_a_job_killed_before_its_first_line_is_not_done(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with JobFile.open(Path(files[3]), SETTINGS):
        pass
    assert main(["run-batch", "--status", files[3]]) == 0
    assert capsys.readouterr().out == "0 of 0 answered · 0 with errors · 0 to go · not running\n"
