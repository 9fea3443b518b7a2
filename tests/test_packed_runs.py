"""``--weight-bits`` and ``--kv-bits`` from end to end: page cache, budgets, jobs that go on, plans, and mistakes."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch
from tests.parity import families
from tests.plan.asking import asking
from transformers import AutoModelForCausalLM, LlamaConfig

from penstock import LLM, SamplingParams, UserError
from penstock.bits import asked_bits
from penstock.cli import main
from penstock.describe import describe
from penstock.engine.skip_rule import Selection, parse_rule
from penstock.free_bits import plan_of_free_bits
from penstock.plan.policy import Shares
from penstock.planner import make_plan
from penstock.recording import record

GREEDY = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
PROMPTS = [{"prompt_token_ids": [5, 6, 7, 8]}, {"prompt_token_ids": [9, 10]}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "model"
    families.build("llama").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A model whose embedding is its LM head."""
    path = tmp_path_factory.mktemp("tied") / "model"
    made = AutoModelForCausalLM.from_config(LlamaConfig(**{**families.GQA, "tie_word_embeddings": True}))
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.08)
    made.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def long_context(tmp_path_factory):
    """A model for prompts of several blocks of packed KV."""
    path = tmp_path_factory.mktemp("long") / "model"
    made = AutoModelForCausalLM.from_config(LlamaConfig(**{**families.GQA, "max_position_embeddings": 256}))
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.08)
    made.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model of which packed pages take less time to read."""
    path = tmp_path_factory.mktemp("wide") / "model"
    widths = {"hidden_size": 256, "intermediate_size": 1536, "num_attention_heads": 4, "num_key_value_heads": 2}
    AutoModelForCausalLM.from_config(LlamaConfig(**{**families.GQA, **widths})).save_pretrained(path)
    return path


def make(path, **how):
    return LLM(str(path), **{"dtype": "float32", "page_bytes": 20_000, "unchecked": True, **how})


def tokens(path, **how):
    with make(path, **how) as llm:
        return [out.outputs[0].token_ids for out in llm.generate(PROMPTS, GREEDY)]


@pytest.mark.parametrize("bits", [4, 8])
def test_placement_does_not_change_tokens(model, bits):
    assert tokens(model, weight_bits=bits, weights="disk=100%") == tokens(model, weight_bits=bits)


def test_pages_shrink_and_nothing_is_packed_unasked(model):
    def pages(**how):
        with make(model, **how) as llm:
            return sum(page.nbytes for page in llm.blueprint.layout.pages if page.kind == "layer")

    whole = pages()
    assert pages(weight_bits=16) == whole
    assert pages(weight_bits=8) < 0.5 * whole
    assert pages(weight_bits=4) < 0.35 * whole


def test_a_tied_embedding_is_read_by_row_as_it_is_packed(tied):
    for how in ({}, {"weights": "disk=100%"}):
        with make(tied, weight_bits=8, lm_head_bits=8, **how) as llm:
            shared = [page for page in llm.blueprint.layout.pages if page.kind in ("head", "embedding")]
            assert {piece.dtype for page in shared for piece in page.slices} == {"int8g64"}
            again = [out.outputs[0].token_ids for out in llm.generate(PROMPTS, GREEDY)]
        assert again == tokens(tied, weight_bits=8, lm_head_bits=8)


def test_what_is_packed_runs_from_the_page_cache_alone(model):
    with make(model, weight_bits=4, weights="disk=100%") as llm:
        llm.generate(PROMPTS, GREEDY)
        packed = [page for page in llm.blueprint.layout.pages if page.kind == "layer"]
        assert packed and all(page.extents is not None for page in packed)
        assert not llm.blueprint.converted_bytes
    with (
        make(model, weight_bits=4, disk_memory=1000) as llm,
        pytest.raises(UserError, match=r"packed weights take \S+ KiB of page cache on disk, and --disk-memory is 1000"),
    ):
        llm.generate(PROMPTS, GREEDY)


RUNS = """
import pathlib, sys, time
from penstock import LLM, SamplingParams
model, mine, go = sys.argv[1:]
with LLM(model, dtype="float32", weight_bits=4, weights="disk=100%", unchecked=True) as llm:
    pathlib.Path(mine).touch()
    while not pathlib.Path(go).exists():
        time.sleep(0.001)
    greedy = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
    print([out.outputs[0].token_ids for out in llm.generate([{"prompt_token_ids": [5, 6, 7, 8]}], greedy)])
    print({extent.path for page in llm.blueprint.layout.pages for extent in page.extents if "pages.bin" in extent.path})
"""


def test_two_processes_that_pack_at_once_leave_one_cache(wide, tmp_path):
    """Both have laid out their pages, and neither has packed any, when they may go on."""
    ready, go, cache = [tmp_path / "first", tmp_path / "second"], tmp_path / "go", tmp_path / "cache"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", RUNS, str(wide), str(mine), str(go)],
            env={**os.environ, "PENSTOCK_CACHE": str(cache)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for mine in ready
    ]
    try:
        while not all(mine.exists() for mine in ready) and all(run.poll() is None for run in runs):
            time.sleep(0.01)
        assert not (cache / "pages").exists()
        go.touch()
        told = [run.communicate(timeout=300)[0].splitlines() for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.wait()
    assert [run.returncode for run in runs] == [0, 0]
    with make(wide, weight_bits=4, weights="disk=100%", page_bytes=None) as llm:
        expected = [out.outputs[0].token_ids for out in llm.generate(PROMPTS[:1], GREEDY)]
    assert told[0] == told[1] and told[0][0] == str(expected)
    (home,) = [path for path in (cache / "pages").iterdir() if path.is_dir()]
    assert told[0][1] == str({str(home / "pages.bin")})
    assert sorted(path.name for path in home.iterdir()) == ["index.json", "pages.bin"]
    assert sorted(path.name for path in home.parent.iterdir()) == [home.name, f"{home.name}.lock"]


def test_a_job_goes_on_as_it_began(model, tmp_path):
    lines = tmp_path / "in.jsonl"
    lines.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    out = tmp_path / "out.jsonl"
    with make(model, weight_bits=4) as llm:
        llm.run_batch(lines, out, GREEDY)
    with make(model, weight_bits=8) as llm, pytest.raises(UserError, match=r"int4g64, now float32\+int8g64"):
        llm.run_batch(lines, out, GREEDY)
    with make(model) as llm, pytest.raises(UserError, match=r"int4g64, now float32"):
        llm.run_batch(lines, out, GREEDY)
    with make(model, weight_bits=4) as llm:
        llm.run_batch(lines, out, GREEDY)
    assert len(out.read_text().splitlines()) == len(PROMPTS)


def test_a_plan_packs_and_is_run_as_it_is(model, tmp_path):
    asked = {"prompt_len": 8, "gen_len": 4, "num_prompts": 4, "dtype": "float32", "cpu_memory": 16 << 30}
    whole, packed = (make_plan(str(model), asking(**asked, weight_bits=bits)) for bits in (None, 4))
    assert packed.policy.weight_bits == 4 and packed.fits
    assert packed.memory["cpu"].weights < 0.5 * whole.memory["cpu"].weights
    assert describe(str(model), dtype="float32")["bytes"] > 0


def test_bits_that_are_free_are_chosen_for_speed(model):
    asked = {"prompt_len": 8, "gen_len": 4, "num_prompts": 4, "dtype": "float32", "cpu_memory": 16 << 30}
    speeds = {
        bits: make_plan(str(model), asking(**asked, weight_bits=bits)).predicted.total_tok_s for bits in (None, 8, 4)
    }
    best = plan_of_free_bits(str(model), asking(**asked), asked_bits("auto", None, None, allow_4bit=True))
    assert best.predicted.total_tok_s == pytest.approx(max(speeds.values()))
    assert speeds[best.policy.weight_bits] == max(speeds.values())
    assert best.notes[0].count("tok/s with weights") == 2


@pytest.mark.parametrize("bits", [3, 0, "5", True])
def test_other_numbers_of_bits_are_refused(model, bits):
    for flag in ("weight_bits", "lm_head_bits", "kv_bits"):
        with pytest.raises(UserError, match=rf"--{flag.replace('_', '-')} {bits}: give 4, 8(,| or) 16"):
            make(model, **{flag: bits})


AUTO = {"weight_bits": "auto", "kv_bits": "auto"}
NO_ROOM = {"disk_memory": 1000}  # for packed pages, so that nothing is packed


def notes_of(path, **how):
    """What is said of a run, and its tokens and precision."""
    notes = []
    with make(path, on_event=lambda event: notes.append(event.get("text") or ""), **how) as llm:
        answers = [out.outputs[0].token_ids for out in llm.generate(PROMPTS, GREEDY)]
        return notes, answers, llm.blueprint.precision.name


def test_a_run_says_in_one_line_which_bits_it_chose(model):
    notes, answers, name = notes_of(model, weight_bits="auto")
    (said,) = [note for note in notes if note.startswith("auto: ")]
    assert re.fullmatch(
        r"auto: weights in 8 bits, \S+ tok/s planned instead of \S+ tok/s as before; penstock eval .*", said
    )
    assert name == "float32+int8g64"
    assert answers == tokens(model, weight_bits=8)


@pytest.mark.parametrize("allow_4bit", [False, True])
def test_a_run_chooses_as_a_plan_does_and_four_bits_where_they_are_allowed(wide, allow_4bit):
    streamed = {"weights": "disk=100%", "page_bytes": None}
    _, answers, name = notes_of(wide, **AUTO, allow_4bit=allow_4bit, **streamed)
    lengths = [(len(prompt["prompt_token_ids"]), GREEDY.max_tokens) for prompt in PROMPTS]
    asked = asking(lengths=lengths, num_prompts=len(lengths), dtype="float32", weights=Shares(disk=1.0))
    policy = plan_of_free_bits(str(wide), asked, asked_bits("auto", None, "auto", allow_4bit)).policy
    assert policy.weight_bits == (4 if allow_4bit else 8)
    bits = {"weight_bits": policy.weight_bits, "kv_bits": policy.kv_bits}
    _, same, planned = notes_of(wide, **bits, **streamed)
    assert (name, answers) == (planned, same)


def test_what_packed_pages_find_no_room_for_stays_as_it_is(model):
    notes, answers, name = notes_of(model, **AUTO, **NO_ROOM)
    assert any(note.startswith("auto: weights as before and KV as before, ") for note in notes)
    assert name == "float32" and answers == tokens(model)


def test_bits_stay_as_they_were_chosen_first(model):
    with make(model, weight_bits="auto") as llm:
        llm.generate(PROMPTS, GREEDY)
        bits = llm.model.bits
        llm.generate(PROMPTS * 20, GREEDY)
        assert llm.model.bits is bits and not bits.free


def test_keys_that_auto_would_pack_are_not_recorded(long_context):
    with make(long_context, kv_bits=8) as llm, pytest.raises(UserError, match="leave --kv-bits out"):
        record(llm, LONG[0], GREEDY, Selection(parse_rule("top-k:4")), None)
    with make(long_context, kv_bits="auto") as llm:
        if llm.model.bits.free:
            llm.model.settle_as("float32+kv-int8g64")
        with pytest.raises(UserError, match="leave --kv-bits out"):
            record(llm, LONG[0], GREEDY, Selection(parse_rule("top-k:4")), None)


@pytest.mark.parametrize(("first", "then"), [(NO_ROOM, {}), ({}, {"allow_4bit": True, "kv_bits": "auto"})])
def test_a_job_goes_on_with_the_bits_that_auto_chose_when_it_began(model, tmp_path, first, then):
    """``then``: with what a new job would be packed otherwise."""
    lines, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    with make(model, weight_bits="auto", **first) as llm:
        llm.run_batch(lines, out, GREEDY)
        begun = llm.blueprint.precision.name
    assert json.loads((tmp_path / "out.jsonl.job").read_text().split("\n")[0])["settings"]["dtype"] == begun
    with lines.open("a") as file:
        file.write(json.dumps({"prompt_token_ids": [11, 12, 13]}) + "\n")
    notes, how = [], {"weight_bits": "auto", **then}
    with make(model, on_event=lambda event: notes.append(event.get("text") or ""), **how) as llm:
        run = llm.run_batch(lines, out, GREEDY)
        assert llm.blueprint.precision.name == begun
    assert (run["answered_before"], run["answered"], run["errors"]) == (2, 3, 0)
    assert any(re.match("auto: weights .*, as this job was begun", note) for note in notes)
    with make(model, **how) as llm:
        llm.generate(PROMPTS, GREEDY)
        assert (llm.blueprint.precision.name != begun) == (first == NO_ROOM)


def test_a_job_of_lines_that_cannot_run_leaves_nothing_to_choose_for(model, tmp_path):
    lines, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines.write_text(json.dumps({"prompt_token_ids": [999_999]}) + "\n")
    with make(model, weight_bits="auto") as llm:
        assert llm.run_batch(lines, out, GREEDY)["errors"] == 1
        assert llm.model.bits.free


def test_the_commands_take_auto_and_go_on_with_it(wide, tmp_path, capsys):
    lines, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    flags = [
        "--weight-bits",
        "auto",
        "--weights",
        "disk=100%",
        "--unchecked",
        "--dtype",
        "float32",
        "--max-tokens",
        "5",
        "--ignore-eos",
    ]
    assert main(["generate", str(wide), "-i", str(lines), *flags, "--json"]) == 0
    told = capsys.readouterr()
    answers = [answer["token_ids"] for answer in json.loads(told.out)["outputs"]]
    assert answers == tokens(wide, weight_bits=8)
    assert told.err.count('"text": "auto: weights in 8 bits') == 1
    batch = ["run-batch", str(wide), "-i", str(lines), "-o", str(out)]
    for flagged in (flags, [*flags, "--allow-4bit"], [flag for flag in flags if flag not in ("--dtype", "float32")]):
        assert main([*batch, *flagged]) == 0
        with lines.open("a") as file:
            file.write(json.dumps({"prompt_token_ids": [5, 6, 7, 8]}) + "\n")
    assert capsys.readouterr().err.count("auto: weights in 8 bits, as this job was begun") == 2
    made = [json.loads(line)["response"]["body"]["choices"][0]["token_ids"] for line in out.read_text().splitlines()]
    assert made[0] == made[2] == made[3] == answers[0]


def test_auto_is_refused_where_nothing_is_planned(model, tmp_path, capsys):
    given = ["--weights", "cpu=100%", "--kv", "cpu=100%", "--rows", "2"]
    assert main(["generate", str(model), "x", "--weight-bits", "auto", *given]) == 2
    err = capsys.readouterr().err
    assert (
        err.startswith("penstock: --weight-bits auto: weights, KV and batch shape are all given")
        and err.count("\n") == 1
    )
    with pytest.raises(UserError, match="--kv-bits auto: weights, KV and batch shape are all given"):
        make(model, kv_bits="auto", weights="cpu=100%", kv="cpu=100%", rows=2)


LONG = [{"prompt_token_ids": [3 + (7 * i) % 50 for i in range(n)]} for n in (100, 30, 70)]


@pytest.mark.parametrize("how", [{"kv": "disk=100%"}, {"rows": 1}, {"weights": "disk=100%", "batch_tokens": 24}])
def test_packed_kv_gives_the_same_tokens_however_it_is_placed(long_context, how):
    def answers(**how):
        with make(long_context, kv_bits=4, **how) as llm:
            return [out.outputs[0].token_ids for out in llm.generate(LONG, GREEDY)]

    assert answers(**how) == answers()


def test_the_memory_of_packed_kv_is_counted_with_its_open_blocks(long_context):
    def footprint(**how):
        with make(long_context, **how) as llm:
            return llm.blueprint.footprint(), describe(str(long_context), dtype="float32", **how)

    (whole, told), (packed, told_packed) = footprint(), footprint(kv_bits=8)
    assert whole.open_block == told["open_kv_bytes_per_row"] == 0
    assert packed.open_block == told_packed["open_kv_bytes_per_row"] == 64 * whole.kv_block // whole.block_tokens
    assert packed.kept == packed.open_block
    assert told_packed["kv_bytes_per_token"] <= 0.5 * told["kv_bytes_per_token"]


def test_a_plan_packs_kv_and_a_run_does_as_it_says(long_context, tmp_path):
    asked = {"prompt_len": 80, "gen_len": 4, "num_prompts": 40, "dtype": "float32", "cpu_memory": 16 << 30}
    whole, packed = (make_plan(str(long_context), asking(**asked, kv_bits=bits)) for bits in (None, 4))
    assert packed.policy.kv_bits == 4 and packed.fits
    assert packed.memory["cpu"].kv < 0.6 * whole.memory["cpu"].kv
    free = plan_of_free_bits(str(long_context), asking(**asked), asked_bits(None, None, "auto", allow_4bit=True))
    assert free.predicted.total_tok_s >= packed.predicted.total_tok_s
    assert "KV in" in free.notes[0] and "penstock eval" in free.notes[0]
    both = plan_of_free_bits(str(long_context), asking(**asked), asked_bits("auto", None, "auto"))
    assert both.notes[0].count("tok/s with") == 3
    assert both.predicted.total_tok_s >= free.predicted.total_tok_s * 0.99


def test_a_saved_plan_that_packs_kv_is_run_as_it_is(long_context, tmp_path, capsys):
    lines, plan, traced = tmp_path / "in.jsonl", tmp_path / "plan.json", tmp_path / "out.jsonl"
    lines.write_text("".join(json.dumps(prompt) + "\n" for prompt in LONG))
    asked = ["--gen-len", "5", "--dtype", "float32", "--kv-bits", "4", "--cpu-memory", "16GiB"]
    assert main(["plan", str(long_context), "-i", str(lines), *asked, "--save", str(plan)]) == 0
    assert json.loads(plan.read_text())["placement"]["policy"]["kv_bits"] == 4
    run = ["--dtype", "float32", "--plan", str(plan), "--unchecked", "--ignore-eos", "--max-tokens", "5"]
    capsys.readouterr()
    assert main(["generate", str(long_context), "-i", str(lines), *run, "--json"]) == 0
    answers = [answer["token_ids"] for answer in json.loads(capsys.readouterr().out)["outputs"]]
    with make(long_context, kv_bits=4) as llm:
        assert answers == [out.outputs[0].token_ids for out in llm.generate(LONG, GREEDY)]
    with LLM(str(long_context), dtype="float32", plan=plan, unchecked=True) as llm:
        assert llm.blueprint.precision.name == "float32+kv-int4g64"
        assert llm.run_batch(lines, traced, GREEDY)["answered"] == len(LONG)
    with pytest.raises(
        UserError, match=r"--plan packs KV in 4 bits: leave --weight-bits, --lm-head-bits and --kv-bits"
    ):
        LLM(str(long_context), dtype="float32", plan=plan, kv_bits=8, unchecked=True)


def test_a_saved_plan_has_the_bits_that_auto_chose(wide, tmp_path):
    plan, job = tmp_path / "plan.json", ["--num-prompts", "2", "--prompt-len", "4", "--gen-len", "5"]
    asked = ["--dtype", "float32", "--weights", "disk=100%", "--weight-bits", "auto"]
    assert main(["plan", str(wide), *job, *asked, "--save", str(plan)]) == 0
    with LLM(str(wide), dtype="float32", plan=plan, unchecked=True) as llm:
        assert llm.blueprint.precision.name == "float32+int8g64"
        assert llm.generate(PROMPTS, GREEDY)


def test_jobs_know_how_their_kv_is_packed(long_context, tmp_path):
    lines, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines.write_text("".join(json.dumps(prompt) + "\n" for prompt in LONG))
    with make(long_context, kv_bits=4) as llm:
        llm.run_batch(lines, out, GREEDY)
    with make(long_context, kv_bits=8) as llm, pytest.raises(UserError, match=r"kv-int4g64, now float32\+kv-int8g64"):
        llm.run_batch(lines, out, GREEDY)


def test_a_row_whose_keys_are_infinite_ends_with_an_error_of_its_own(long_context, tmp_path):
    broken = AutoModelForCausalLM.from_pretrained(long_context)
    broken.model.embed_tokens.weight.data[60] = torch.inf
    broken.save_pretrained(tmp_path / "broken")
    lines, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts = [LONG[0], {"prompt_token_ids": [4] * 70 + [60] + [4] * 70}]
    lines.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    with make(tmp_path / "broken", kv_bits=4) as llm:
        llm.run_batch(lines, out, GREEDY)
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["error"] is None for answer in sorted(answers, key=lambda a: a["custom_id"])] == [True, False]
