import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.fake_llm import Engine

from penstock.cli import main
from penstock.errors import UserError


def test_one_prompt_streams_its_text_and_sums_up_on_stderr(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.answer = lambda _: "The capital is Paris."
    engine.events = [{"kind": "text", "index": 0, "text": text} for text in ("The capital", " is")]
    assert main(["generate", "demo", "Capital of France?"]) == 0
    out, err = capsys.readouterr()
    assert out == "The capital is Paris.\n"
    assert err.splitlines()[1:] == [
        "9 tokens in 1.1 s · 8.2 tok/s",
        "half of the weights (129 MiB) streamed from disk 9 times at 1.4 GB/s; waiting for disk→cpu 71 % of the time",
        "memory: 612 MiB at most, of 22 GiB allowed",
    ]


def test_several_prompts_come_in_input_order_under_their_first_line(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.events = [{"kind": "text", "index": 1, "text": "early"}]
    assert main(["generate", "demo", "one\nmore", "two"]) == 0
    out, err = capsys.readouterr()
    assert out == "── 1 ── one\nONE\nMORE\n\n── 2 ── two\nTWO\n"
    assert "2 prompts · 12 tokens in · 9 out · 1.1 s" in err
    assert "placed      weights cpu 130 MiB + disk 129 MiB · KV cpu 1 MiB\n" in err


def test_without_a_tokenizer_token_ids_stand_for_text(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.tokenizer, engine.answer = None, lambda _: ""
    assert main(["generate", "demo", "one"]) == 0
    assert capsys.readouterr().out == "7 8\n"
    assert main(["generate", "demo", "one", "two"]) == 0
    assert capsys.readouterr().out == "── 1 ── one\n7 8\n\n── 2 ── two\n7 8\n"


def test_json_is_one_value_with_outputs_and_run(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.events = [{"kind": "note", "text": "computing in float32"}, {"kind": "text", "index": 0, "text": "x"}]
    assert main(["generate", "demo", "één", "two", "--json"]) == 0
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert value["outputs"][0] == {
        "index": 0,
        "prompt": "één",
        "prompt_token_ids": [1, 2, 3],
        "text": "ÉÉN",
        "token_ids": [7, 8],
        "finish_reason": "stop",
    }
    assert value["run"]["prompts"] == 2
    assert [json.loads(line) for line in err.splitlines()] == [{"kind": "note", "text": "computing in float32"}]


def test_flags_reach_the_engine_by_the_names_of_python(engine: Engine) -> None:
    flags = {
        "dtype": "float32",
        "weight_bits": 4,
        "lm_head_bits": 8,
        "kv_bits": 8,
        "device": "emulated",
        "gpu_memory": "1GiB",
        "cpu_memory": "2GiB",
        "disk_memory": "3GiB",
        "offload_dir": "there",
        "weights": "cpu=50%,disk=50%",
        "kv": "disk=100%",
        "activations": "gpu=100%",
        "attention": "cpu",
        "compute_cpu_layers": 3,
        "batch_tokens": 256,
        "slots": 3,
        "batch_size": 4,
        "num_batches": 2,
    }
    words = [word for name, value in flags.items() for word in ("--" + name.replace("_", "-"), str(value))]
    switches = ["--random-weights", "--trust-remote-code", "--unchecked"]
    assert main(["generate", "demo", "x", *words, *switches]) == 0
    expected = {**flags, "model": "demo", "rows": None, "sweep_tokens": None, "trace": None, "plan": None}
    expected |= {"allow_4bit": False, "random_weights": True, "trust_remote_code": True, "unchecked": True}
    assert engine.asked == expected
    assert main(["generate", "demo", "x", "--rows", "3", "--sweep-tokens", "512"]) == 0
    assert (engine.asked["rows"], engine.asked["sweep_tokens"]) == (3, 512)


def test_sampling_flags(engine: Engine) -> None:
    flags = "--temperature 0.5 --top-p 0.9 --top-k 40 --seed 3 --max-tokens 7 --stop a --stop b --ignore-eos"
    assert main(["generate", "demo", "x", "--no-chat", *flags.split()]) == 0
    params = vars(engine.params)
    assert params.pop("stop") == ["a", "b"]
    assert params == {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "seed": 3, "max_tokens": 7, "ignore_eos": True}
    assert engine.chat is False


def test_what_is_not_said_stays_open(engine: Engine) -> None:
    assert main(["generate", "demo", "x"]) == 0
    assert set(vars(engine.params).values()) == {None}
    assert engine.chat is True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-size", "2"], "--batch-size needs --num-batches beside it; or use --rows alone"),
        (["--num-batches", "2"], "--num-batches needs --batch-size beside it; or use --rows alone"),
        (
            ["--rows", "4", "--batch-size", "2", "--num-batches", "2"],
            "--rows 4 and --batch-size 2 say the same thing in two ways; use one of them",
        ),
        (
            ["--batch-size", "2", "--num-batches", "2", "--sweep-tokens", "64"],
            "--sweep-tokens 64 has no say beside --batch-size: leave it out, or use --rows instead",
        ),
        (["--weights", "cpu=50%"], "--weights 'cpu=50%' sums to 50 %: the shares of all tiers must sum to 100 %"),
        (["-i", "f.txt"], "prompts come either as arguments or from -i, not both; leave one of them out"),
        (["--trace", "no/such/dir.json"], "--trace no/such/dir.json is not a file in a directory that exists"),
        (["--dtype", "int3"], "'int3' is none of auto, bfloat16, float16, float32"),
        (["--device", "tpu"], "'tpu' is none of auto, cuda, cpu"),
        (["--rows", "0"], "--rows"),
        (["--rwos", "1"], "--rwos"),
    ],
)
def test_mistakes_in_flags_are_one_line_and_status_2(
    engine: Engine, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["generate", "demo", "x", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("penstock: ")
    assert err.count("\n") == 1
    assert message in err
    assert engine.asked == {}, "refused before the engine is touched"


def test_refusals_of_the_engine_are_one_line_and_status_2(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.failure = UserError("--cpu-memory 1MiB is too small; the least that works is 540MiB")
    assert main(["generate", "demo", "x", "--cpu-memory", "1MiB"]) == 2
    assert capsys.readouterr() == ("", "penstock: --cpu-memory 1MiB is too small; the least that works is 540MiB\n")


def test_a_fault_of_ours_is_not_dressed_up_as_a_mistake(engine: Engine) -> None:
    engine.failure = KeyError("layer")
    with pytest.raises(KeyError):
        main(["generate", "demo", "x"])


def test_interrupt_ends_the_line_and_exits_130(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.events = [{"kind": "text", "index": 0, "text": "The cap"}]
    engine.failure = KeyboardInterrupt()
    assert main(["generate", "demo", "x"]) == 130
    assert capsys.readouterr() == ("The cap\n", "penstock: stopped before the end; nothing is kept of this run\n")


def test_a_reader_that_has_gone_is_no_reason_to_complain(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.failure = BrokenPipeError(32, "Broken pipe")
    try:
        status = main(["generate", "demo", "x"])
    except SystemExit as leaving:  # some versions of typer leave by themselves
        status = int(leaving.code or 0)
    assert status == 1
    assert capsys.readouterr().err == ""


def test_prompts_from_a_file(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "job.jsonl"
    file.write_text('{"prompt": "a", "id": 7}\n{"prompt_token_ids": [1, 2]}\n')
    assert main(["generate", "demo", "-i", str(file)]) == 0
    assert engine.requests == [{"prompt": "a"}, {"prompt_token_ids": [1, 2]}]


def test_prompts_from_standard_input(
    engine: Engine, stdin: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(b'{"messages": [{"role": "user", "content": "Hi\\nthere"}]}\n{"prompt_token_ids": [1, 2]}')
    assert main(["generate", "demo", "-i", "-"]) == 0
    assert len(engine.requests) == 2
    headings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("──")]
    assert headings == ["── 1 ── Hi", "── 2 ── 2 token ids"]
