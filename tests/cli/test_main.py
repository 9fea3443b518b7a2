import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.fake_planner import PLAN

from penstock.cli import main
from penstock.plan.saved import save_plan


def test_help_of_generate_is_grouped_and_ends_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--help"]) == 0
    text = capsys.readouterr().out
    titles = [line.rstrip(":") for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert [title.split(" (")[0] for title in titles] == [
        "Arguments",
        "Input and output",
        "Sampling",
        "Memory",
        "Placement",
        "How the work is cut",
        "Model",
        "Examples",
    ]
    assert 'penstock generate demo "What is the capital of France?"' in text
    assert "emulated" not in text


def test_help_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "models" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"penstock {importlib.metadata.version('penstock')}\n"


def test_an_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["genrate"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("penstock: No such command")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["generate", "--help"],
        ["generate", "demo", "--rows", "0"],
        ["generate", "demo", "x", "--weights", "cpu=50%"],
        ["generate", "demo", "x", "--weights", "gpu=50%,cpu=50%", "--device", "cpu"],
        ["generate", "demo", "x", "--compute-cpu-layers", "2", "--kv", "gpu"],
        ["run-batch", "demo", "-i", "in.jsonl", "-o", "out.jsonl", "--gpu-memory", "1GiB", "--device", "cpu"],
        ["models", "demo", "--gpu-memory", "1GiB", "--device", "cpu"],
        ["plan", "demo", "--compute-cpu-layers", "2", "--device", "cpu"],
        ["plan", "demo", "--machine", "skylake-2core", "--attention", "gpu"],
        ["generate", "demo", "x", "--max-tokens", "0"],
        ["trace", "record", "demo", "--prompt", "x", "-o", "out.skip", "--max-tokens", "0"],
        ["generate", "demo", "x", "--cpu-memory", "4Gx"],
        ["generate", "demo", "x", "--plan", "no-such-file"],
        ["generate", "demo", "x", "--offload-dir", "/dev/null/none"],
        ["generate", "./none/here", "x"],
        ["models", "no-such-file.gguf"],
        ["plan", "demo", "--machine", "none"],
        ["run-batch", "demo", "-i", "no-such-file", "-o", "out.jsonl"],
    ],
)
def test_what_needs_no_model_loads_no_heavy_library(words: list[str]) -> None:
    code = (
        "import sys; from penstock.cli import main; main(sys.argv[1:]);"
        "print(*{'torch', 'transformers', 'numpy', 'numba'} & sys.modules.keys(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == ""


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "none/here", "x", "--weights", "gpu=50%,cpu=50%"],
        ["run-batch", "none/here", "-i", "in.jsonl", "-o", "out.jsonl", "--gpu-memory", "1GiB"],
        ["plan", "none/here", "--compute-cpu-layers", "2"],
        ["eval", "none/here", "--device", "cuda"],
        ["generate", "none/here", "x", "--plan", "{plan}"],
    ],
)
def test_a_gpu_that_is_not_there_is_told_before_a_model_is_looked_for(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    save_plan(PLAN, "of whatever model", 1, plan)  # a part of its weights is on a gpu
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for room in ("penstock.llm", "penstock.planner", "penstock.batch", "penstock.scoring"):
        monkeypatch.setitem(sys.modules, room, None)  # what opens models cannot be imported
    assert main([word.format(plan=plan) for word in words]) == 2
    assert re.fullmatch(r"penstock: .*(this host has no|no CUDA device here).*\n", capsys.readouterr().err)


def test_sigterm_leaves_by_the_ordinary_way_out():
    code = """
import os, signal, sys, time, typer
from penstock import cli

class Command:
    def main(self, *args, **kwargs):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        finally:
            print("tidied")

typer.main.get_command = lambda app: Command()
sys.exit(cli.main([]))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=25)
    assert (found.returncode, found.stdout) == (128 + 15, "tidied\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no file here that takes nothing")
@pytest.mark.parametrize("lines", [1, 10_000])
def test_output_that_finds_no_room_is_told_in_one_line(lines):
    code = f"""
import sys, typer
from penstock import cli

class Command:
    def main(self, *args, **kwargs):
        print("a line" * {lines})

typer.main.get_command = lambda app: Command()
sys.exit(cli.main([]))
"""
    with open("/dev/full", "w") as full:
        found = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, timeout=25)
    told = "penstock: the output cannot be written (No space left on device): make room where it goes\n"
    assert (found.returncode, found.stderr) == (1, told)
