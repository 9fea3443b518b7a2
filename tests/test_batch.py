"""``run_batch``: every line has one line of answer, whatever the lines are and whatever stops the job."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.model.test_tokenizer import TEMPLATE, byte_tokenizer
from tests.parity import families
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config

from penstock import LLM, SamplingParams, UserError
from penstock.engine.engine import Engine
from penstock.jobs.errors import JobStopped
from penstock.plan.types import Job
from penstock.schedule import scheduler

HOW: dict[str, Any] = {"dtype": "float32", "page_bytes": 20_000, "unchecked": True}
PARAMS = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
FLAGS = ["--dtype", "float32", "--unchecked", "--json", "--temperature", "0", "--ignore-eos"]
WIDTHS = {**families.GQA, "vocab_size": 260, "max_position_embeddings": 512}
VOCABULARY = WIDTHS["vocab_size"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model, stored in bfloat16, with a tokenizer of bytes and a chat template that takes only texts."""
    return saved(LlamaConfig(**WIDTHS), tmp_path_factory.mktemp("spoken"))


def saved(config: PretrainedConfig, path: Path) -> Path:
    """A random model of the config, in a directory."""
    made = AutoModelForCausalLM.from_config(config)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.08)
    made.bfloat16().save_pretrained(path)
    byte_tokenizer(TEMPLATE).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with LLM(str(model), weights="cpu=50%,disk=50%", rows=8, **HOW) as made:
        yield made


def requests(count: int, length: Callable[[int], int] = lambda i: 3 + i % 7, header: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(0)
    shared = [draw.randrange(VOCABULARY) for _ in range(header)]
    return [
        {"custom_id": f"q{i}", "prompt_token_ids": shared + [draw.randrange(VOCABULARY) for _ in range(length(i))]}
        for i in range(count)
    ]


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path: Path) -> dict[str, Any]:
    """The answers by custom_id, which must all differ."""
    with path.open() as file:  # what a model says may hold other ends of lines than a file's
        found = [json.loads(line) for line in file]
    by_id = {(one["custom_id"], one["line"]): one for one in found}
    assert len(by_id) == len({one["id"] for one in found}) == len(found)
    return {custom_id: one for (custom_id, _), one in by_id.items()}


def said(answers: dict[str, Any]) -> dict[str, Any]:
    """What was answered to each custom_id, with its id and length."""
    bodies = {name: (one["id"], one["response"]["body"]) for name, one in answers.items()}
    return {name: (id, body["choices"], body["usage"]) for name, (id, body) in bodies.items()}


def test_every_line_has_its_line(llm: LLM, tmp_path: Path) -> None:
    lines = [*requests(20), {"custom_id": "q3", "prompt_token_ids": [1]}, {"prompt": "x" * 5000}, 7]
    source, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    run = llm.run_batch(source, out, PARAMS)
    assert (run["answered"], run["errors"], run["to_go"]) == (20, 3, 0)
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(one["line"] for one in answers) == list(range(1, 24))
    errors = {one["line"]: one["error"] for one in answers if one["error"]}
    codes = {line: error["code"] for line, error in errors.items()}
    assert codes == {21: "duplicate", 22: "too_long", 23: "invalid_json"}
    assert "the model's context holds 512" in errors[22]["message"]
    before = out.read_bytes()
    again = llm.run_batch(source, out, PARAMS)
    assert out.read_bytes() == before and again["answered_before"] == 20 and again["to_go"] == 0
    for figures in (run, again):
        assert figures["errors_by_code"] == {"duplicate": 1, "too_long": 1, "invalid_json": 1}
        assert figures["first_error_lines"] == {"duplicate": 21, "too_long": 22, "invalid_json": 23}


def test_what_the_survey_finds_is_told(model: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [*requests(2), {"custom_id": "q1", "prompt_token_ids": [1]}, 7])
    told: list[str] = []

    def listen(event: Mapping[str, Any]) -> None:
        if event["kind"] == "note" and ("in.jsonl" in event["text"] or "to go" in event["text"]):
            told.append(event["text"])

    with LLM(str(model), on_event=listen, **HOW) as llm:
        for _ in range(2):
            llm.run_batch(source, tmp_path / "out.jsonl", PARAMS)
    assert [text.partition(",")[0] for text in told] == [
        "in.jsonl: 1 line cannot be run",
        "in.jsonl: 1 line with the custom_id of an earlier one",
        "0 to go",
    ]


def test_a_torn_output_is_mended_and_gone_on_with(llm: LLM, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", requests(12)), tmp_path / "out.jsonl"
    llm.run_batch(source, out, PARAMS)
    whole = read(out)
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    run = llm.run_batch(source, out, PARAMS)
    assert run["answered_before"] == 5 and run["answered"] == 12
    assert said(read(out)) == said(whole)


def test_what_was_answered_differently_is_refused(llm: LLM, tmp_path: Path) -> None:
    lines = requests(6)
    source, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    llm.run_batch(source, out, PARAMS)
    kept = out.read_bytes()
    with pytest.raises(UserError, match=r"max_tokens 5, now 6.*--overwrite"):
        llm.run_batch(source, out, SamplingParams(max_tokens=6, temperature=0, ignore_eos=True))
    write(source, [*lines[:4], {**lines[4], "max_tokens": 2}, lines[5]])
    with pytest.raises(UserError, match=r"q4 is answered in out\.jsonl"):
        llm.run_batch(source, out, PARAMS)
    assert out.read_bytes() == kept
    assert llm.run_batch(source, out, PARAMS, overwrite=True)["answered"] == 6
    assert read(out)["q4"]["response"]["body"]["usage"]["completion_tokens"] == 2


def test_errors_run_again_where_asked(llm: LLM, tmp_path: Path) -> None:
    lines = requests(5)
    wrong = [{**line, "prompt_token_ids": []} for line in lines[3:]]
    source, out = write(tmp_path / "in.jsonl", [*lines[:3], *wrong]), tmp_path / "out.jsonl"
    assert llm.run_batch(source, out, PARAMS)["errors"] == 2
    for right in (1, 2):
        write(source, [*lines[: 3 + right], *wrong[right:]])
        run = llm.run_batch(source, out, PARAMS, retry_errors=True)
        assert (run["answered_before"], run["answered"], run["errors"]) == (2 + right, 3 + right, 2 - right)
        assert run["errors_by_code"] == ({"invalid_request": 1} if right == 1 else {})
    assert all(one["error"] is None for one in read(out).values())


def test_a_line_longer_than_memory_is_one_error(model: Path, tmp_path: Path) -> None:
    """The job is laid out for the others."""
    longest = 2 * WIDTHS["max_position_embeddings"]
    source = write(tmp_path / "in.jsonl", [*requests(5), {"custom_id": "long", "prompt_token_ids": [1] * longest}])
    with LLM(str(model), rows=4, **HOW) as made:
        run = made.run_batch(source, tmp_path / "out.jsonl", PARAMS)
    assert run["answered"] + run["errors"] == 6 and run["answered"] >= 5


def test_shared_prefixes_change_nothing_but_the_work(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    lines = requests(20, lambda i: 2 + i % 5, header=70)
    source = write(tmp_path / "in.jsonl", lines)
    found = {}
    for shares in (True, False):
        if not shares:
            monkeypatch.setattr(scheduler.Scheduler.__init__, "__defaults__", (True, False))
        with LLM(str(model), rows=6, batch_tokens=64, **HOW) as made:
            run = made.run_batch(source, tmp_path / f"out-{shares}.jsonl", PARAMS)
            prompts = [{"prompt_token_ids": line["prompt_token_ids"]} for line in lines]
            texts = sorted(
                (int(out.request_id), tuple(out.outputs[0].token_ids)) for out in made.stream(prompts, PARAMS)
            )
        found[shares] = texts, said(read(tmp_path / f"out-{shares}.jsonl")), run["shared_tokens"]
    assert found[True][:2] == found[False][:2]
    assert found[True][2] >= 19 * 64 and found[False][2] == 0


BYTES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b'{"prompt": "\\ud800"}',
            b'{"prompt_token_ids": [1, 2, 1e400]}',
            b'{"prompt_token_ids": [' + b"9" * 5000 + b"]}",
            b'{"prompt": "a\\u0000b"}',
            b"[" * 100_000,
            b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
            b'{"prompt": "' + b"x" * 200_000,
            b'{"prompt_token_ids": [1, 2], "max_tokens": 99999999999999999999}',
            b'{"custom_id": "\\udfff", "prompt_token_ids": [1]}',
            b"\xff\xfe{}",
            b"NaN",
            b'{"messages": [{"role": "user", "content": null}]}',
            b'{"messages": [{"role": "user", "content": "a", "tool_calls": 5}]}',
            b'{"messages": [{"role": "system", "content": [{"type": "text", "text": "a"}]}]}',
        ]
    ),
    st.builds(
        lambda key, value: json.dumps({key: value}).encode(),
        st.sampled_from(["prompt", "messages", "prompt_token_ids", "body", "custom_id"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), st.lists, max_leaves=5
        ),
    ),
)


@settings(
    max_examples=5, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), derandomize=True
)
@given(st.lists(BYTES.map(lambda line: line.replace(b"\n", b" ").strip() or b"{"), min_size=200, max_size=200))
def test_a_thousand_damaged_lines(llm: LLM, tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    lines = [*lines, b'{"prompt_token_ids": [5, 6]}']  # a file without any JSON is refused
    (folder / "in.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    run = llm.run_batch(folder / "in.jsonl", folder / "out.jsonl", PARAMS)
    answers = [json.loads(line) for line in (folder / "out.jsonl").read_bytes().splitlines()]
    assert sorted(one["line"] for one in answers) == list(range(1, len(lines) + 1))
    assert run["answered"] + run["errors"] == len(lines)


def start(model: Path, source: Path, out: Path, *more: str, **how: Any) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "penstock",
        "run-batch",
        str(model),
        "-i",
        str(source),
        "-o",
        str(out),
        *FLAGS,
        *more,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


def made_job(tokens: int) -> Job:
    return Job(2, tokens, tokens, tokens)


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed_after(process: subprocess.Popen[str], done: Callable[[], bool], number: int) -> None:
    """Send a signal as soon as something holds."""
    while not done() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)


def test_kill_9_loses_and_doubles_nothing(model: Path, tmp_path: Path) -> None:
    """PENSTOCK_KILLS: how often; the first is during start-up, the others after a random number of new lines."""
    kills = int(os.environ.get("PENSTOCK_KILLS", "3"))
    source, out, offload = write(tmp_path / "in.jsonl", requests(200)), tmp_path / "out.jsonl", tmp_path / "offload"
    offload.mkdir()
    more = ["--max-tokens", "16", "--rows", "8", "--kv", "cpu=50%,disk=50%", "--offload-dir", str(offload)]
    draw = random.Random(1)
    for kill in range(kills):
        begun, at = lines_in(out), time.monotonic()
        process = start(model, source, out, *more)
        if kill < max(1, kills // 5):
            killed_after(process, lambda at=at: time.monotonic() > at + 1, signal.SIGKILL)
        else:
            wanted = begun + draw.randrange(1, 12)
            killed_after(process, lambda wanted=wanted: lines_in(out) >= wanted, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = start(model, source, out, *more)
    figures, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert json.loads(figures)["run"]["answered"] == 200
    assert not any(offload.iterdir())
    undisturbed = tmp_path / "undisturbed.jsonl"
    assert start(model, source, undisturbed, *more[:4]).wait(300) == 0
    assert said(read(out)) == said(read(undisturbed))
    assert len({body[1][0]["text"] for body in said(read(out)).values()}) > 100


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_job_after_its_sweep(model: Path, tmp_path: Path, number: int) -> None:
    source, out = write(tmp_path / "in.jsonl", requests(60)), tmp_path / "out.jsonl"
    more = ["--max-tokens", "24", "--rows", "4"]
    process = start(model, source, out, *more)
    killed_after(process, lambda: lines_in(out) >= 4, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert 4 <= len(read(out)) < 60
    assert start(model, source, out, *more).wait(300) == 0
    assert len(read(out)) == 60


def test_a_full_disk_keeps_what_is_done(model: Path, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", requests(60)), tmp_path / "out.jsonl"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 10, resource.RLIM_INFINITY))

    process = start(model, source, out, "--rows", "4", "--max-tokens", "3", preexec_fn=limited)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "start the same command again" in errors and "Traceback" not in errors
    assert 5 < len(read(out)) < 60
    assert start(model, source, out, "--rows", "4", "--max-tokens", "3").wait(120) == 0
    assert len(read(out)) == 60


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that takes what is free there, less some bytes."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - leave))
    return ballast


def test_a_disk_of_answers_that_is_full(llm: LLM, small_disk: Path, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", requests(60)), small_disk / "out.jsonl"
    ballast = fill(small_disk, leave=16 << 10)
    with pytest.raises(JobStopped, match=r"no room left for out\.jsonl: .* free in .*small\. Free some there, then"):
        llm.run_batch(source, out, PARAMS)
    assert 5 < len(read(out)) < 60
    ballast.unlink()
    assert llm.run_batch(source, out, PARAMS)["answered"] == len(read(out)) == 60


def test_a_disk_that_is_full_before_a_job_begins(llm: LLM, small_disk: Path, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", requests(6)), small_disk / "out.jsonl"
    ballast = fill(small_disk, leave=0)
    with pytest.raises(JobStopped, match=r"out\.jsonl\.job cannot be written .*: make room in .*small"):
        llm.run_batch(source, out, PARAMS)
    assert list(small_disk.iterdir()) == [ballast]
    ballast.unlink()
    assert llm.run_batch(source, out, PARAMS)["answered"] == 6


def test_a_text_is_no_job_and_leaves_nothing(llm: LLM, tmp_path: Path) -> None:
    source, out = tmp_path / "text.txt", tmp_path / "out.jsonl"
    source.write_text("What is the capital of France?\nAnd of Spain?\n")
    with pytest.raises(UserError, match=r"^text\.txt: no line of 2 could be read; line 1: the line is not JSON"):
        llm.run_batch(source, out, PARAMS)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("groups", [1, 2])
def test_a_disk_of_kv_that_is_full(model: Path, small_disk: Path, tmp_path: Path, groups: int) -> None:
    """KV of one group takes its room at the start; that of several grows as rows do."""
    if groups == 2:
        kinds = ["sliding_attention", "full_attention", "full_attention"]
        windowed = Qwen2Config(use_sliding_window=True, sliding_window=64, layer_types=kinds, **WIDTHS)
        model = saved(windowed, tmp_path / "windowed")
    source, out = write(tmp_path / "in.jsonl", requests(40, lambda i: 3 + 4 * i)), tmp_path / "out.jsonl"
    how = {**HOW, "offload_dir": small_disk, "kv": "disk=100%", "disk_memory": "1GiB", "rows": 8}
    ballast = fill(small_disk, leave=160 << 10)
    with LLM(str(model), **how) as made:
        with pytest.raises(JobStopped) as stopped:
            made.run_batch(source, out, PARAMS)
        told = ("No space left on device", "--offload-dir", str(small_disk), "start the same command again")
        assert all(part in str(stopped.value) for part in told)
        kept = lines_in(out)
        assert kept > 0 if groups == 2 else not out.exists()
        ballast.unlink()
    with LLM(str(model), **how) as made:
        run = made.run_batch(source, out, PARAMS)
    assert (run["answered_before"], run["answered"], len(read(out))) == (kept, 40, 40)
    assert list(small_disk.iterdir()) == []


def test_an_answer_that_memory_cut_is_an_error(model: Path, tmp_path: Path) -> None:
    lines = [*requests(5), {"custom_id": "long", "prompt_token_ids": [5, 6], "max_tokens": 400}]
    source, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"

    class Cramped(LLM):
        """It lays out memory for rows of 64 tokens, whatever the job."""

        def run(self, items: Any, job: Job, *more: Any) -> Any:
            return super().run(items, made_job(64), *more)

    with Cramped(str(model), rows=2, **HOW) as made:
        run = made.run_batch(source, out, PARAMS)
    assert (run["answered"], run["errors"]) == (5, 1)
    assert read(out)["long"]["error"]["code"] == "too_long"
    with LLM(str(model), rows=2, **HOW) as made:
        assert made.run_batch(source, out, PARAMS, retry_errors=True)["answered"] == 6


def test_an_answer_that_the_context_ended_is_counted(llm: LLM, tmp_path: Path) -> None:
    prompt = {"prompt_token_ids": [5] * (WIDTHS["max_position_embeddings"] - 3)}
    lines = [{**prompt, "custom_id": "whole", "max_tokens": 3}, {**prompt, "custom_id": "cut", "max_tokens": 4}]
    run = llm.run_batch(write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl", PARAMS)
    assert (run["answered"], run["errors"], run["context_full"]) == (2, 0, 1)
    told = [body[1][0]["finish_reason"] for body in said(read(tmp_path / "out.jsonl")).values()]
    assert told == ["length", "length"]


def test_a_static_group_enters_whole_however_little_is_read_ahead(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.batch.WAITING", 2)
    monkeypatch.setattr("penstock.llm.READ_AHEAD", 2)
    source = write(tmp_path / "in.jsonl", requests(12, lambda i: 5))
    with LLM(str(model), batch_size=3, num_batches=2, **HOW) as made:
        run = made.run_batch(source, tmp_path / "out.jsonl", PARAMS)
        assert (run["answered"], run["rows_mean"], run["sweeps"]) == (12, 6, 2 * 5)
        assert len(list(made.stream([{"prompt_token_ids": [5, 6]}] * 12, PARAMS))) == 12
        assert (made.last_run["rows_mean"], made.last_run["sweeps"]) == (6, 2 * 5)


def test_a_stream_and_a_run_do_not_mix(llm: LLM) -> None:
    stream = llm.stream([{"prompt_token_ids": [1, 2]}] * 20, PARAMS)
    next(stream)
    with pytest.raises(UserError, match="a stream of this LLM is not at its end"):
        llm.generate({"prompt_token_ids": [1]}, PARAMS)
    stream.close()
    assert llm.generate({"prompt_token_ids": [1]}, PARAMS)


def test_a_mistake_changes_nothing(llm: LLM, model: Path, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", [*requests(3), {"prompt": 5}]), tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="too small"), LLM(str(model), cpu_memory="50MiB", **HOW) as small:
        small.run_batch(source, out, PARAMS)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    llm.run_batch(source, out, PARAMS)
    before = out.read_bytes()
    with pytest.raises(UserError, match="too small"), LLM(str(model), cpu_memory="50MiB", **HOW) as small:
        write(source, [*requests(4), {"prompt": 5}])
        small.run_batch(source, tmp_path / "out.jsonl", PARAMS, retry_errors=True)
    assert out.read_bytes() == before


def test_files_of_the_engine_that_cannot_grow_stop_the_job(llm: LLM, tmp_path: Path, monkeypatch: Any) -> None:
    source, out = write(tmp_path / "in.jsonl", requests(30)), tmp_path / "out.jsonl"
    sweeps = iter(range(100))

    def sweep(engine: Any) -> Any:
        if next(sweeps) == 12:
            raise OSError(28, "No space left on device", str(tmp_path / "kv-0"))
        return whole(engine)

    whole = Engine.sweep
    monkeypatch.setattr(Engine, "sweep", sweep)
    with pytest.raises(JobStopped, match=r"kv-0 \(No space left on device\)\. Free room in"):
        llm.run_batch(source, out, PARAMS)
    monkeypatch.undo()
    assert 0 < len(read(out)) < 30
    assert llm.run_batch(source, out, PARAMS)["answered"] == 30


def spoilt(model: Path, path: Path, name: str, row: int) -> Path:
    """The model with NaN in one row of a matrix."""
    shutil.copytree(model, path)
    weights = load_file(path / "model.safetensors")
    weights[name][row] = float("nan")
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


def test_a_row_whose_logits_are_not_finite_is_one_error(llm: LLM, model: Path, tmp_path: Path) -> None:
    lines = requests(6)
    outputs = llm.generate([{"prompt_token_ids": line["prompt_token_ids"]} for line in lines], PARAMS)
    used = {token for out in outputs for token in (*out.prompt_token_ids, *out.outputs[0].token_ids)}
    token = next(token for token in range(VOCABULARY) if token not in used)
    source = write(tmp_path / "in.jsonl", [*lines, {"custom_id": "spoilt", "prompt_token_ids": [5, token, 6]}])
    with LLM(str(spoilt(model, tmp_path / "spoilt", "model.embed_tokens.weight", token)), **HOW) as made:
        run = made.run_batch(source, tmp_path / "out.jsonl", PARAMS)
    assert (run["answered"], run["errors_by_code"]) == (6, {"not_finite": 1})
    told = "prompt 7: the logits for its token 1 are NaN or infinite in float32: its weights may be damaged"
    assert read(tmp_path / "out.jsonl")["spoilt"]["error"]["message"].startswith(told)


def test_a_model_that_says_nothing_finite_stops_the_job(model: Path, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", requests(40)), tmp_path / "out.jsonl"
    with LLM(str(spoilt(model, tmp_path / "spoilt", "lm_head.weight", 9)), **HOW) as made:
        with pytest.raises(JobStopped, match=r"none of the first 16 could be answered; prompt .* --retry-errors"):
            made.run_batch(source, out, PARAMS)
        assert lines_in(out) == 16
        with pytest.raises(UserError, match=r"prompt 1: the logits for its token 1 are NaN or infinite in float32"):
            made.generate({"prompt_token_ids": [5, 6]}, PARAMS)
