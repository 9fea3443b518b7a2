"""``LLM`` as a script uses it: kinds of prompts, several in one process, interruptions, and mistakes in one line."""

import gc
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.model.test_tokenizer import TEMPLATE, byte_tokenizer
from tests.parity import families
from transformers import AutoModelForCausalLM, LlamaConfig

from penstock import LLM, SamplingParams, UserError
from penstock.plan.types import Job

CONTEXT = 64
GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """A tiny random model with a tokenizer of bytes and a chat template."""
    path = tmp_path_factory.mktemp("spoken")
    widths = {**families.GQA, "vocab_size": 260}
    model = AutoModelForCausalLM.from_config(LlamaConfig(max_position_embeddings=CONTEXT, **widths))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.08)
    model.save_pretrained(path)
    byte_tokenizer(TEMPLATE).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def mute(tmp_path_factory):
    """A tiny random model without a tokenizer."""
    path = tmp_path_factory.mktemp("mute")
    families.build("llama").save_pretrained(path)
    return path


def make(path, **how):
    return LLM(str(path), **{"dtype": "float32", "page_bytes": 20_000, "unchecked": True, **how})


@pytest.fixture(scope="module")
def llm(spoken):
    with make(spoken, weights="cpu=50%,disk=50%") as made:
        yield made


def tokens(outputs):
    return [out.outputs[0].token_ids for out in outputs]


def test_text_and_its_token_ids_are_the_same_prompt(llm):
    (said,) = llm.generate("Hello", GREEDY)
    (again,) = llm.generate({"prompt_token_ids": said.prompt_token_ids}, GREEDY)
    assert said.prompt == "Hello" and again.prompt is None
    assert said.prompt_token_ids == again.prompt_token_ids and len(said.prompt_token_ids) == 1 + len("Hello")
    assert said.outputs == again.outputs


def test_results_are_in_input_order_and_do_not_depend_on_each_other(llm):
    prompts = ["one", "a longer prompt than that", "2"]
    together = llm.generate(prompts, GREEDY)
    assert [out.prompt for out in together] == prompts
    assert tokens(together) == [tokens(llm.generate(prompt, GREEDY))[0] for prompt in prompts]
    assert all(out.outputs[0].finish_reason == "length" for out in together)


def test_a_list_of_params_goes_with_the_prompts(llm):
    outputs = llm.generate(["a", "b"], [SamplingParams(max_tokens=2, ignore_eos=True), GREEDY])
    assert [len(ids) for ids in tokens(outputs)] == [2, 6]
    with pytest.raises(UserError, match="2 prompts and 1"):
        llm.generate(["a", "b"], [GREEDY])


def test_no_prompts_are_no_work(llm):
    assert llm.generate([]) == []


def test_chat_goes_through_the_template(llm):
    messages = [{"role": "user", "content": "Hi"}]
    answer = llm.chat(messages, GREEDY)[0]
    assert llm.tokenizer.decode(answer.prompt_token_ids) == "<s>[user]Hi[assistant]"
    assert tokens(llm.chat([messages, messages], GREEDY)) == [answer.outputs[0].token_ids] * 2
    assert tokens(llm.generate("Hi", GREEDY, chat=True)) == [answer.outputs[0].token_ids]


def test_sampling_params_are_named_as_vllm_s(llm):
    """Its users give them by name, for all prompts or one each."""
    (answer,) = llm.generate("Hi", sampling_params=GREEDY)
    assert len(answer.outputs[0].token_ids) == 6
    short, long = (SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for n in (2, 6))
    both = llm.generate(prompts=["Hi", "Hi"], sampling_params=[short, long])
    assert [len(ids) for ids in tokens(both)] == [2, 6] and tokens(both)[1] == tokens([answer])[0]
    messages = [{"role": "user", "content": "Hi"}]
    said = llm.chat(messages=[messages, messages], sampling_params=[long, short])
    assert tokens(said)[1] == tokens(said)[0][:2] == tokens(llm.chat(messages, sampling_params=short))[0]
    assert tokens(llm.stream(["Hi"], sampling_params=short)) == [tokens(both)[0]]


def test_a_stop_text_ends_a_row_and_is_not_shown(llm):
    def printable(text):
        return next((c for c in text if c != "\ufffd" and c.isprintable()), None)

    texts = {prompt: llm.generate(prompt, GREEDY)[0].outputs[0].text for prompt in ("Stop", "Halt", "End", "Enough")}
    prompt, whole = next((prompt, text) for prompt, text in texts.items() if printable(text))
    stop = printable(whole)
    cut = llm.generate(prompt, SamplingParams(max_tokens=6, temperature=0, ignore_eos=True, stop=[stop]))[0].outputs[0]
    assert cut.text == whole[: whole.index(stop)] and cut.finish_reason == "stop"


def test_text_is_the_same_alone_and_among_others(llm, monkeypatch):
    monkeypatch.setattr(llm.tokenizer, "clean_up_tokenization_spaces", True)
    several = llm.generate(["Hello", "Goodbye"], GREEDY)
    assert llm.generate("Hello", GREEDY)[0].outputs == several[0].outputs


def test_draws_do_not_depend_on_what_else_runs(llm):
    drawn = SamplingParams(max_tokens=6, temperature=1.0, seed=7, ignore_eos=True)
    alone = tokens(llm.generate(["first"], drawn))
    assert tokens(llm.generate(["first", "second", "third"], drawn))[:1] == alone
    assert (
        tokens(llm.generate(["first"], SamplingParams(max_tokens=6, temperature=1.0, seed=8, ignore_eos=True))) != alone
    )


def test_the_last_run_is_summed_up(llm):
    llm.generate(["a", "bc"], GREEDY)
    run = llm.last_run
    assert (run["prompts"], run["tokens_out"]) == (2, 12)
    assert run["links"]["disk_to_cpu"]["bytes"] > 0 and run["placed_bytes"]["weights"]["disk"] > 0


def test_two_in_one_process(llm, mute):
    before = tokens(llm.generate("both", GREEDY))
    with make(mute, weights="disk=100%") as other:
        ids = {"prompt_token_ids": [5, 6, 7]}
        first = tokens(other.generate(ids, GREEDY))
        assert tokens(llm.generate("both", GREEDY)) == before
        assert tokens(other.generate(ids, GREEDY)) == first


def test_an_interruption_leaves_it_usable(spoken):
    interrupting = True

    def on_event(event):
        if interrupting and event["kind"] == "sweep" and event["sweeps"] == 3:
            raise KeyboardInterrupt

    with make(spoken, on_event=on_event) as model:
        with pytest.raises(KeyboardInterrupt):
            model.generate(["a", "b"], GREEDY)
        interrupting = False
        after = tokens(model.generate(["a", "b"], GREEDY))
    with make(spoken) as fresh:
        assert tokens(fresh.generate(["a", "b"], GREEDY)) == after


def test_progress_tells_the_memory_of_each_tier(spoken):
    told = []
    shares = {"weights": "disk=100%", "kv": "disk=100%", "activations": "disk=100%"}
    with make(spoken, device="emulated", gpu_memory="64MiB", on_event=told.append, **shares) as model:
        model.generate("x" * 40, GREEDY)
    last = next(event for event in reversed(told) if event["kind"] == "sweep")
    assert list(last["memory"]) == ["gpu", "cpu", "disk"]
    assert all(0 < taken <= budget for taken, budget in last["memory"].values())
    assert last["memory"]["gpu"][1] == 64 << 20


def test_generation_stops_at_the_context(llm):
    (out,) = llm.generate("x" * 59, SamplingParams(max_tokens=50, ignore_eos=True))  # 60 tokens with BOS
    assert len(out.outputs[0].token_ids) == CONTEXT - 60 and out.outputs[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("x" * CONTEXT, "context"),
        ({"prompt_token_ids": []}, "prompt_token_ids"),
        ({"prompt_token_ids": [260]}, "0 to 259"),
        ({"prompt_token_ids": [-1]}, "0 to 259"),
        ({"prompt_token_ids": ["1"]}, "prompt_token_ids"),
        ({"prompt_token_ids": 1}, "prompt 2 is no text"),
        ({"prompt": "a", "messages": []}, "one of prompt, messages"),
        ({"text": "a"}, "one of prompt, messages"),
        (7, "prompt 2 is no text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "image"),
    ],
)
def test_a_prompt_that_cannot_be_run_is_a_users_mistake(llm, prompt, says):
    with pytest.raises(UserError, match=says) as caught:
        llm.generate(["good", prompt], GREEDY)
    assert "\n" not in str(caught.value)
    assert tokens(llm.generate("good", GREEDY))


def test_text_for_a_model_without_tokenizer_is_refused(mute):
    with make(mute) as model, pytest.raises(UserError, match="token"):
        model.generate("text", GREEDY)


@pytest.mark.parametrize("model", [None, 5, b"demo"])
def test_a_model_that_is_no_text_is_a_users_mistake(model):
    with pytest.raises(UserError, match="give a path"):
        LLM(model)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"weights": "cpu=50%,disk=40%"}, "100"),
        ({"weights": "cpu=50%,tape=50%"}, "tape"),
        ({"kv": "gpu=100%"}, "gpu"),
        ({"rows": 0}, "--rows 0"),
        ({"batch_size": 2}, "--num-batches"),
        ({"batch_size": 2, "num_batches": 2, "rows": 4}, "--rows"),
        ({"batch_size": 2, "num_batches": 2, "sweep_tokens": 64}, "--sweep-tokens 64 has no say beside --batch-size"),
        ({"cpu_memory": "much"}, "much"),
        ({"device": "abacus"}, "abacus"),
        ({"dtype": "int3"}, "int3"),
        ({"dtype": 4}, "dtype=4: give text"),
        ({"attention": ["cpu"]}, "give text"),
        ({"plan": 5}, "plan=5: give a path"),
        ({"trace": "no/such/dir.json"}, "--trace no/such/dir.json is not a file in a directory that exists"),
    ],
)
def test_settings_that_cannot_be_are_a_users_mistake(spoken, how, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught, make(spoken, **how) as model:
        model.generate("x", GREEDY)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no file here that takes nothing")
def test_a_trace_that_cannot_be_written_costs_nothing_else(spoken):
    notes = []
    with make(spoken, trace="/dev/full", on_event=lambda event: notes.append(event.get("text"))) as model:
        assert model.generate("x", GREEDY)
    assert notes[-1] == "--trace /dev/full was not written (No space left on device)"


def test_what_the_model_asks_for_and_is_not_done_is_said(spoken, tmp_path):
    path = shutil.copytree(spoken, tmp_path / "penalised")
    (path / "generation_config.json").write_text('{"repetition_penalty": 1.05, "eos_token_id": 2}')
    notes = []
    make(path, on_event=lambda event: notes.append(event.get("text"))).close()
    assert "not done, though the model's generation_config asks for it: repetition_penalty 1.05" in notes


def test_answers_that_memory_cut_are_told(mute):
    notes, prompt = [], {"prompt_token_ids": [5, 6, 7]}

    class Cramped(LLM):
        """It lays out memory for rows of 9 tokens, whatever the job."""

        def run(self, items, job, *more):
            return super().run(items, Job(1, 9, 9, 3), *more)

    how = {"dtype": "float32", "page_bytes": 20_000, "unchecked": True}
    with Cramped(str(mute), rows=1, on_event=lambda event: notes.append(event.get("text")), **how) as model:
        (cut,) = tokens(model.generate(prompt, SamplingParams(max_tokens=400, temperature=0, ignore_eos=True)))
    assert 6 <= len(cut) < 400
    assert notes[-1].startswith("memory for KV was full before max_tokens of 1 answer: give more memory")


def test_answers_that_the_context_cut_are_told(spoken):
    notes = []
    with make(spoken, on_event=lambda event: notes.append(event.get("text"))) as model:
        model.generate(["x" * 60, "y"], GREEDY)
    assert notes[-1] == "the model's context was full before max_tokens of 1 answer"


@pytest.mark.parametrize("room", ["4KiB", None])
def test_pages_that_no_cache_holds_are_told(spoken, room):
    notes = []
    how = {"dtype": "bfloat16", "disk_memory": room, "on_event": lambda event: notes.append(event.get("text") or "")}
    with make(spoken, **how) as model:
        assert tokens(model.generate("x", GREEDY))
    told = [note for note in notes if note.startswith("pages are converted whenever they are read")]
    assert len(told) == (room is not None) and all("exceeds --disk-memory 4 KiB" in note for note in told)


def test_what_a_person_should_know_is_logged_where_nobody_listens(spoken, caplog):
    make(spoken).close()
    assert "not checked that llama runs exactly (--unchecked)" in [r.getMessage() for r in caplog.records]
    caplog.clear()
    make(spoken, on_event=lambda event: None).close()
    assert not caplog.records


def test_one_that_is_not_closed_leaves_nothing_on_disk(spoken, tmp_path):
    model = make(spoken, kv="disk=100%", offload_dir=tmp_path)
    model.generate("x", GREEDY)
    assert list(tmp_path.iterdir())
    del model
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_closed_one_says_so(spoken):
    model = make(spoken)
    model.close()
    model.close()
    with pytest.raises(UserError, match="closed"):
        model.generate("x")


def test_a_budget_that_is_too_small_names_the_least_which_works(spoken):
    """In processes of their own: what this one takes depends on the tests before."""

    def run(budget):
        flags = ["--unchecked", "--dtype", "float32", "--max-tokens", "6", "--cpu-memory", budget]
        command = [sys.executable, "-m", "penstock", "generate", str(spoken), "x", *flags]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused = run("10MiB")
    least = re.search(r"The least that works is (\d+MiB)", refused.stderr)
    assert refused.returncode == 2 and least is not None, refused.stderr
    granted = run(least[1])
    assert granted.returncode == 0, granted.stderr


@pytest.mark.xdist_group("smollm2")
def test_the_demo_answers_a_chat():
    with LLM("demo", dtype="float32") as model:
        (out,) = model.chat(
            [{"role": "user", "content": "What is the capital of France?"}],
            SamplingParams(max_tokens=12, temperature=0),
        )
    assert "Paris" in out.outputs[0].text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a gpu to give memory on")
def test_memory_on_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="--gpu-memory is given, and this host has no gpu"):
        LLM("no-such-model", gpu_memory="4GiB")
