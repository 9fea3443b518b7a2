import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from tests.cli.fake_planner import GIB, PLAN, Planner, install
from tests.plan.asking import asking

from penstock.cli import main
from penstock.plan.plan import Use
from penstock.plan.policy import Shares
from penstock.plan.question import Question
from penstock.plan.saved import load_plan


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch) -> Planner:
    planner = Planner()
    install(planner, monkeypatch)
    return planner


@pytest.fixture
def fingerprints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fingerprints of names alone; the real module imports torch."""
    module = ModuleType("penstock.model.fingerprint")
    module.fingerprint = lambda found: f"llama {found.name}"  # type: ignore[attr-defined]  # made on the spot
    monkeypatch.setitem(sys.modules, module.__name__, module)


def question(planner: Planner, *flags: str) -> Question:
    assert main(["plan", "demo", *flags]) == 0
    assert planner.question is not None
    return planner.question


def test_the_usual_question(planner: Planner) -> None:
    assert question(planner) == Question()
    assert planner.model == "demo"


def test_flags_become_the_question(planner: Planner) -> None:
    flags = (
        "--prompt-len 100 --gen-len 20 --num-prompts 30 --machine t4-flexgen --gpu-memory 1GiB --cpu-memory 2GiB"
        " --disk-memory 3GiB --weights gpu=20%,cpu=80% --kv cpu --activations gpu --attention cpu --rows 7"
        " --sweep-tokens 64 --batch-tokens 32 --slots 2 --weight-bits 4 --kv-bits 8 --dtype float16 --device cpu"
        " --offload-dir there --trust-remote-code --cost-model flexgen"
    )
    assert question(planner, *flags.split()) == asking(
        prompt_len=100,
        gen_len=20,
        num_prompts=30,
        machine="t4-flexgen",
        gpu_memory=GIB,
        cpu_memory=2 * GIB,
        disk_memory=3 * GIB,
        weights=Shares(gpu=0.2, cpu=0.8),
        kv=Shares(cpu=1.0),
        activations=Shares(gpu=1.0),
        attention="cpu",
        rows=7,
        sweep_tokens=64,
        batch_tokens=32,
        slots=2,
        weight_bits=4,
        kv_bits=8,
        dtype="float16",
        device="cpu",
        offload_dir="there",
        trust_remote_code=True,
        cost_model="flexgen",
    )


def test_the_cost_model_has_a_second_name(planner: Planner) -> None:
    assert question(planner, "--model", "flexgen").cost_model == "flexgen"


@pytest.mark.parametrize(
    ("flags", "objective", "latency_s"),
    [
        ([], "throughput", None),
        (["--objective", "latency"], "latency", None),
        (["--max-seconds", "2.5"], "latency", 2.5),
        (["--objective", "latency", "--max-seconds", "9"], "latency", 9.0),
        (["--max-token-seconds", "0.5"], "latency", None),
    ],
)
def test_objectives(planner: Planner, flags: list[str], objective: str, latency_s: float | None) -> None:
    asked = question(planner, *flags)
    assert (asked.objective, asked.latency_s) == (objective, latency_s)


def test_a_bound_on_each_token(planner: Planner) -> None:
    asked = question(planner, "--max-token-seconds", "0.5", "--max-seconds", "70", "--sweep-tokens", "128")
    assert (asked.token_s, asked.latency_s) == (0.5, 70.0)


def test_flexgens_form_and_no_disk(planner: Planner) -> None:
    said = question(planner, "--batch-size", "48", "--num-batches", "3", "--no-disk")
    assert (said.asked.batch_size, said.asked.num_batches, said.no_disk) == (48, 3, True)


def test_the_answer_comes_as_text(planner: Planner, capsys: pytest.CaptureFixture[str]) -> None:
    planner.events = [{"kind": "note", "text": "measuring this host"}]
    assert main(["plan", "demo"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[4] == (
        "predicted       13.8 tok/s: 300,000 tokens in 6 h 02 min · prefill 640 tok/s · decode 14.7 tok/s"
    )
    assert "\x1b" not in out
    assert err == "measuring this host\n"


def test_json_has_all_of_it(planner: Planner, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "demo", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["policy"]["rows"] == 196
    assert value["predicted"]["total_tok_s"] == pytest.approx(300_000 / 21_720)
    assert value["binding_lane"] == "disk→cpu"
    assert value["fits"] is True


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["demo", "--prompt-len", "0"], "--prompt-len"),
        (["demo", "--num-prompts", "-3"], "--num-prompts"),
        (["demo", "--gen-len", "many"], "--gen-len"),
        (["demo", "--rows", "3", "--batch-size", "2", "--num-batches", "2"], "say the same thing in two ways"),
        (["demo", "--batch-size", "2"], "--batch-size needs --num-batches"),
        (["demo", "--objective", "throughput", "--max-seconds", "3"], "--max-seconds 3 bounds latency"),
        (["demo", "--objective", "speed"], "'speed' is none of throughput, latency"),
        (["demo", "--max-seconds", "0"], "--max-seconds 0: give a number of seconds above 0"),
        (["demo", "--max-seconds", "nan"], "--max-seconds nan: give a number"),
        (["demo", "--max-token-seconds", "-1"], "--max-token-seconds -1: give a number of seconds above 0"),
        (["demo", "--objective", "throughput", "--max-token-seconds", "3"], "--max-token-seconds 3 bounds latency"),
        (["demo", "--no-disk", "--weights", "cpu=50%,disk=50%"], "--no-disk and --weights cpu=50%,disk=50% contradict"),
        (["demo", "--no-disk", "--disk-memory", "1GiB"], "--no-disk and --disk-memory 1GiB contradict"),
        (["demo", "--weights", "cpu=50%"], "sums to 50 %"),
        (["demo", "--cpu-memory", "-1"], "--cpu-memory is '-1'"),
        (["demo", "--weight-bits", "5"], "--weight-bits 5: give 4, 8, 16 or auto"),
        (["demo", "--weight-bits", "4.0"], "--weight-bits 4.0: give 4, 8, 16 or auto"),
        (["demo", "--lm-head-bits", "3"], "--lm-head-bits 3: give 4, 8 or 16"),
        (["demo", "--allow-4bit"], "--allow-4bit has a say with --weight-bits auto or --kv-bits auto"),
        (["demo", "--weight-bits", "auto", "--explain", "paging"], "leave auto out"),
        (["demo", "--kv-bits", "auto", "--explain", "paging"], "leave auto out"),
        (["demo", "--kv-bits", "0"], "--kv-bits 0: give 4, 8, 16 or auto"),
        (["demo", "--plot", "plan.pdf"], "--plot plan.pdf: the name must end in .png, .svg or .html"),
        (["demo", "--plot", "none/plan.png"], "--plot none/plan.png is not a file in a directory that exists"),
        (["demo", "--save", "none/plan.json"], "--save none/plan.json is not a file in a directory that exists"),
        (["demo", "--explain", "everything"], "'everything' is none of paging"),
        (["demo", "--explain", "paging", "--plot", "x.png"], "leave --plot out"),
        (["demo", "--explain", "paging", "--compute-cpu-layers", "2"], "leave --compute-cpu-layers out"),
        (["demo", "--explain", "paging", "--rows", "2", "--kv", "cpu"], "leave --kv out"),
        (["demo", "--cost-model", "guess"], "'guess' is none of penstock, flexgen"),
        (["demo", "-i", "none.jsonl"], "none.jsonl cannot be read: No such file"),
        (["demo", "-i", "x.jsonl", "--prompt-len", "5"], "--prompt-len 5 and -i x.jsonl describe the job in two ways"),
        (["demo", "-i", "-"], "-i -: a plan is made before a job"),
        ([], "plan needs a MODEL"),
        (["demo", "--instance", "lp.toml"], "--instance lp.toml is a problem of its own: leave demo out"),
    ],
)
def test_mistakes_are_one_line(
    planner: Planner,
    flags: Sequence[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *flags]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("penstock: ")
    assert message in err
    assert err.count("\n") == 1
    assert planner.question is None


def test_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[tuple[Path, bool]] = []
    module = ModuleType("penstock.cli.plan_instance")
    module.run_instance = lambda path, as_json: solved.append((path, as_json))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "penstock.cli.plan_instance", module)
    assert main(["plan", "--instance", "lp.toml", "--json"]) == 0
    assert solved == [(Path("lp.toml"), True)]


def test_a_file_of_token_ids_says_the_lengths(planner: Planner, tmp_path: Path) -> None:
    lines = [{"prompt_token_ids": [1] * 5, "max_tokens": 9}, {"prompt_token_ids": [1, 2]}]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = question(planner, "-i", str(source), "--gen-len", "33")
    assert asked.lengths == [(5, 9), (2, 33)]
    assert asked.num_prompts == 2
    assert asked.prompts is None  # they have nothing in common
    assert (asked.job.longest_prompt, asked.job.longest_tokens, asked.job.mean_tokens) == (5, 35, 25)


@pytest.mark.usefixtures("fingerprints")
def test_save_writes_what_load_reads(planner: Planner, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    assert main(["plan", "demo", "--save", str(path)]) == 0
    saved = load_plan(path)
    assert saved.model.fingerprint == "llama demo"
    assert saved.model.page_bytes == 2 * 2**20 + 2 * 2**18
    assert saved.placement == PLAN.placement
    assert capsys.readouterr().err == ""
    assert main(["plan", "there/config.json", "--save", str(path)]) == 0
    assert capsys.readouterr().err == f"{path} is of a config alone: it runs with --random-weights only\n"


@pytest.mark.usefixtures("fingerprints")
def test_a_plan_that_does_not_fit_is_told_and_not_saved(
    planner: Planner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planner.plan = replace(PLAN, memory={"gpu": Use(GIB, 0, 2 * GIB, 0, 0, 0)})
    assert main(["plan", "demo"]) == 0  # pricing it is no mistake
    assert "does not fit:   gpu 1 GiB short (1,073,741,824 bytes)" in capsys.readouterr().out
    assert main(["plan", "demo", "--save", str(tmp_path / "plan.json")]) == 2
    out, err = capsys.readouterr()
    assert "predicted" in out
    assert "so it is not saved" in err
    assert not (tmp_path / "plan.json").exists()


def test_explain_paging(planner: Planner, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "demo", "--explain", "paging", "--rows", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny on toy, in decode at a context of 576 tokens"
    assert any(line.startswith("sweeps of 5 rows") for line in lines)
    assert max(len(line) for line in lines) <= 80
    assert planner.question is None  # nothing is searched


def test_explain_paging_as_json(planner: Planner, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "demo", "--explain", "paging", "--json"]) == 0
    paging = json.loads(capsys.readouterr().out)["paging"]
    by_name = {way["name"]: way for way in paging["ways"]}
    assert paging["context"] == 512 + 64
    assert by_name["resident"]["slowdown"] == 1.0
    assert by_name["resident"]["fits"] is False
    assert by_name["one layer at a time"]["break_even_rows"] is None
    assert by_name["one layer at a time"]["slowdown"] > by_name["4-bit transfer"]["slowdown"] > 1
