import json
from pathlib import Path

import pytest

from penstock.cli import main
from penstock.cli.trace_table import table
from penstock.trace.coded import CodedTrace
from penstock.trace.info import inspect

SIZE = ["--prefill-tokens", "300", "--steps", "40", "--layers", "3"]


@pytest.fixture
def made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "made.skip"
    assert main(["trace", "synth", str(path), *SIZE, "--skip", "0.3"]) == 0
    capsys.readouterr()
    return path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["trace", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err[:10]) == ("", 1, "penstock: ")
    return err.rstrip("\n")


def test_synth_says_what_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.skip"
    monkeypatch.setattr("penstock.cli.trace._SHOWN_AFTER_S", 0.0)
    assert main(["trace", "synth", str(path), *SIZE, "--skip", "0.3", "--overlap", "0.95", "--seed", "3"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{path} · 40 steps × 3 layers after 300 tokens · ")
    assert " % skipped (30.0 % asked) · " in out and "of bits)" in out
    assert "drawing skips" in err
    trace = CodedTrace.open(path)
    assert trace.header.parameters["overlap"] == 0.95 and trace.header.parameters["seed"] == 3


def test_synth_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "synth", str(tmp_path / "a.skip"), *SIZE, "--skip", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert (told["skip"], told["steps"], told["layers"], told["prefill_tokens"]) == (1.0, 40, 3, 300)
    assert all(json.loads(line)["kind"] == "load" for line in err.splitlines())


def test_a_scenario_gives_sizes_and_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from penstock.sim.scenario_file import parse
    from penstock.sim.shipped import document_of

    path, given = tmp_path / "a.skip", parse(document_of("seed-003"), "seed-003")
    flags = ["--scenario", "seed-003", "--skip", "0.4", "--steps", "20", "--seed", "9"]
    assert main(["trace", "synth", str(path), *flags]) == 0
    trace = CodedTrace.open(path)
    assert (trace.shape.prefill_tokens, trace.shape.layers) == (given.scenario.prefill_tokens, given.scenario.layers)
    assert trace.shape.steps == 20 and trace.header.parameters["seed"] == 9
    assert trace.header.parameters["overlap"] == given.trace.overlap


def test_info(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "info", str(made), "--plot", str(tmp_path / "a.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ("made by       synth · skip 0.3 · overlap 0.9 · correlation 0.5 · sinks 4 · recent 16 · seed 0")
    assert lines[1] == "size          40 steps × 3 layers after 300 tokens"
    assert "of the tokens that exist (30.0 % asked)" in lines[2]
    assert [line[:14].strip() for line in lines[3:]] == ["", "overlap", "", "layers", "bytes"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_info_json(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "info", str(made), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["skip_asked"] == 0.3 and 0.2 < told["skip"] < 0.3 and len(told["skip_of_layers"]) == 3
    assert told["overlap"] > 0.85 and told["rule"] == "synth" and told["parameters"]["sinks"] == 4
    assert told["coded_bytes"] == made.stat().st_size


def test_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, path = tmp_path / "a.txt", tmp_path / "a.skip"
    text.write_text("0,0,0,[1,2],0\n0,0,1,[],1\n1,0,0,[],True\n")
    flags = ["--prefill-tokens", "9", "--first-step", "0"]
    assert main(["trace", "import", str(text), str(path), *flags]) == 0
    out = capsys.readouterr().out
    assert "2 steps × 1 layer after 9 tokens · 63.2 % skipped · 1 MLP skipped in the text" in out
    text.write_text(text.read_text() + "2,0,0,[1")
    assert "a.txt, line 4: '2,0,0,[1' is not" in refused(["import", str(text), str(path), *flags], capsys)
    assert CodedTrace.open(path).shape.steps == 2  # what was there stays


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["synth", "a.skip", *SIZE, "--skip", "0.05"], "ask for an overlap of 0.948 or more"),
        (["synth", "a.skip", *SIZE, "--skip", "30"], "skip is 30"),
        (["synth", "no/where/a.skip", *SIZE, "--skip", "0.3"], "cannot be written"),
        (
            ["synth", "a.skip", "--skip", "0.3"],
            "--prefill-tokens and --steps and --layers must be given, or --scenario",
        ),
        (["synth", "a.skip", *SIZE], "--skip"),
        (["synth", "a.skip", "--scenario", "nowhere", "--skip", "0.3"], "nowhere"),
        (["info", "none.skip"], "none.skip cannot be read"),
        (["info", "a.skip", "--plot", "a.pdf"], "neither .png nor .svg"),
        (["info", "a.skip", "--plot", "no/where/a.png"], "--plot no/where/a.png is not a file in a directory that"),
        (["import", "none.txt", "a.skip", "--prefill-tokens", "9"], "none.txt cannot be read"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(arguments, capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_trace_is_one_line(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.write_bytes(made.read_bytes()[:-1])
    assert "is no whole trace, from byte" in refused(["info", str(made)], capsys)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace"]) == 0
    out = capsys.readouterr().out
    assert "penstock trace import study.txt study.skip --prefill-tokens 1024\n" in out
    assert "penstock trace record demo -i book.txt" in out
    for command in ("synth", "import", "info"):
        assert main(["trace", command, "--help"]) == 0
        assert "Examples:\n  penstock trace" in capsys.readouterr().out


def test_a_layer_keeps_its_number_where_others_read_nothing(tmp_path: Path) -> None:
    text, path = tmp_path / "a.txt", tmp_path / "a.skip"
    text.write_text("4,0,0,[],1\n4,1,0,[0],0\n4,2,0,[],0\n5,0,0,[],1\n5,1,0,[1,2],0\n5,2,0,[0],0\n")
    assert main(["trace", "import", str(text), str(path), "--prefill-tokens", "4"]) == 0
    lines = dict(enumerate(label + text for label, text in table(inspect(CodedTrace.open(path)))))
    (spread,) = [lines[number + 1] for number, line in lines.items() if line.startswith("overlap")]
    assert spread.startswith("by layer 33.3 % (layer 1) to 75.0 % (layer 2), ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["import", "a.txt", "a.txt", "--prefill-tokens", "4"], "FILE a.txt would be written over TEXT a.txt"),
        (["info", "a.png", "--plot", "a.png"], "--plot a.png would be written over FILE a.png"),
        (["synth", "a.toml", "--scenario", "./a.toml", "--skip", "0.3"], "would be written over --scenario ./a.toml"),
    ],
)
def test_what_is_read_is_not_written_over(
    arguments: list[str], said: str, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made.parent)
    for name in ("a.txt", "a.png", "a.toml"):
        Path(name).write_bytes(made.read_bytes())
    assert said in refused(arguments, capsys)
    assert all(Path(name).read_bytes() == made.read_bytes() for name in ("a.txt", "a.png", "a.toml"))
