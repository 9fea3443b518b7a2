"""Attention on the cpu beside an emulated gpu: keys stay where they lie, and answers are those of transformers."""

import threading
import time
import weakref
from functools import cache
from typing import Any

import pytest
from tests.parity.conftest import NEW_TOKENS
from tests.parity.harness import PAGE_BYTES, Trail, engine_of, greedy, run
from tests.parity.reference import Answer, generate

from penstock import LLM, SamplingParams
from penstock.engine import beside, serving
from penstock.engine.beside import Beside
from penstock.errors import UserError

# grouped heads, windows, sinks beside experts, chunks, softcaps, and layers that read others' keys
FAMILIES = ("llama", "mistral-window", "gpt_oss-sinks", "llama4-chunked", "gemma2-softcap", "gemma4-shared-kv")
BESIDE: dict[str, Any] = {"device": "emulated", "attention": "cpu", "block_tokens": 16, "rows": 3}
CALLS = {"sweep_tokens": 24, "batch_tokens": 7}
HOW: dict[str, dict[str, Any]] = {
    "one call": {"kv": "cpu=100%", "sweep_tokens": 200, "batch_tokens": 200},
    "calls": {"kv": "cpu=100%", **CALLS},
    "calls, one slot": {"kv": "cpu=100%", "weights": "cpu=100%", "slots": 1, **CALLS},
    "calls, KV on disk": {"kv": "disk=100%", **CALLS},
    "calls, KV everywhere": {"kv": "gpu=30%,cpu=40%,disk=30%", "weights": "cpu=50%,disk=50%", **CALLS},
    "calls, parked": {"kv": "cpu=50%,disk=50%", "activations": "cpu=50%,disk=50%", **CALLS},
    "static": {"kv": "cpu=100%", "batch_size": 2, "num_batches": 2, "batch_tokens": 64, "rows": None},
}

each_family = pytest.mark.parametrize("family", [pytest.param(f, marks=pytest.mark.xdist_group(f)) for f in FAMILIES])


@pytest.fixture(scope="module")
def long(subject):
    """Answers of a family to prompts that fill one block and more."""

    @cache
    def made(family: str) -> list[Answer]:
        model = subject(family)
        prompts = [model.prompts[i] + model.prompts[i - 1] for i in range(4)]
        return [generate(model.model, prompt, NEW_TOKENS) for prompt in prompts]

    return made


@pytest.fixture
def attended(monkeypatch):
    """Names of threads that attended beside the compute device."""
    threads: list[str] = []
    inner = beside.attend_blocks

    def attend(*how):
        threads.append(threading.current_thread().name)
        return inner(*how)

    monkeypatch.setattr(beside, "attend_blocks", attend)
    return threads


@pytest.mark.parametrize("how", HOW)
@each_family
def test_matrix(subject, long, compare, attended, family, how):
    answers = long(family)
    given = {**BESIDE, **HOW[how]}
    tokens, trail = run(subject(family).path, [a.prompt for a in answers], NEW_TOKENS, **given)
    compare(answers, tokens, trail.logits)
    assert (trail.micro_batches > 1) is (how != "one call")
    assert attended and all(name.startswith("penstock-beside") for name in attended)


def test_no_ring_of_the_gpu_is_taken_and_what_the_cpu_needs_is_counted(subject):
    rings: dict[str, int] = {}
    for attention in ("gpu", "cpu"):
        for kv in ("cpu=100%", "disk=100%"):
            how = {**BESIDE, "attention": attention, "kv": kv}
            with engine_of(subject("llama").path, [40], NEW_TOKENS, **how) as engine:
                stager = engine.reach.stager
                rings[f"{attention} {kv}"] = 0 if stager is None or stager.on_host else stager.nbytes
                assert (engine.reach.beside is not None) is (attention == "cpu")
                assert (stager is None) is (attention == "cpu" and kv == "cpu=100%")
    assert rings["gpu cpu=100%"] and rings["gpu disk=100%"]
    assert rings["cpu cpu=100%"] == rings["cpu disk=100%"] == 0


def test_other_micro_batches_go_on_while_one_is_attended_to_and_keep_their_queries(subject, long, compare, monkeypatch):
    """The cpu begins on a question only when another micro-batch has asked its own, or was waited for in vain."""
    asked, overlapped = threading.Semaphore(0), []
    ask, attend = Beside.ask, beside.attend_blocks

    def asking(*how):
        found = ask(*how)
        for _ in found:
            asked.release()
        return found

    def slowly(*how):
        asked.acquire()  # of the question itself
        overlapped.append(asked.acquire(timeout=0.2))
        if overlapped[-1]:
            asked.release()
        return attend(*how)

    monkeypatch.setattr(Beside, "ask", asking)
    monkeypatch.setattr(beside, "attend_blocks", slowly)
    answers = long("gpt_oss-sinks")[:3]
    how = {**BESIDE, "kv": "cpu=100%", "batch_size": 1, "num_batches": 3, "batch_tokens": 64, "rows": None}
    tokens, trail = run(subject("gpt_oss-sinks").path, [a.prompt for a in answers], NEW_TOKENS, **how)
    compare(answers, tokens, trail.logits)
    assert sum(overlapped) >= len(overlapped) / 2  # of three micro-batches the last has nobody beside it


def test_results_are_not_kept_beyond_their_layer(subject, long, monkeypatch):
    """Those of a sweep would add up to the answers of all layers and calls."""
    alive, most = weakref.WeakSet(), []
    ask = Beside.ask

    def asking(*how):
        found = ask(*how)
        alive.update(question.errand.found[0] for question in found)
        most.append(len(alive))
        return found

    monkeypatch.setattr(Beside, "ask", asking)
    answers = long("llama")
    how = {**BESIDE, "kv": "cpu=100%", "batch_size": 1, "num_batches": 2, "batch_tokens": 64, "rows": None}
    run(subject("llama").path, [a.prompt for a in answers], NEW_TOKENS, **how)
    assert len(most) > 20 and max(most) <= 3  # of two calls at one layer, and one that is being replaced


def swept(engine, trail: Trail, prompts, count: int) -> list[list[int]]:
    trail.watch(engine)
    rows = [engine.add(str(i), prompt, greedy(count)) for i, prompt in enumerate(prompts)]
    while engine.sweep() is not None:
        pass
    return [engine.sequences[row].generated for row in rows]


def test_an_error_of_the_thread_reaches_the_caller_and_leaves_nothing_behind(subject, long, compare, monkeypatch):
    answers = long("llama")
    inner = beside.attend_blocks

    def fails(*how):
        raise UserError("cannot read kv-0")

    how = {**BESIDE, **CALLS, "kv": "cpu=100%"}
    with engine_of(subject("llama").path, [50] * 4, NEW_TOKENS, **how) as engine:
        monkeypatch.setattr(beside, "attend_blocks", fails)
        lost = [engine.add(f"lost {i}", a.prompt, greedy(NEW_TOKENS)) for i, a in enumerate(answers)]
        with pytest.raises(UserError, match="kv-0"):
            while engine.sweep() is not None:
                pass
        monkeypatch.setattr(beside, "attend_blocks", inner)
        for row in lost:
            engine.abort(row)
        assert not any(space.taken for space in engine.reach.beside.errands.spaces)
        trail = Trail()
        tokens = swept(engine, trail, [a.prompt for a in answers], NEW_TOKENS)
        shifted = {row - len(lost): logits for row, logits in trail.logits.items()}
        compare(answers, tokens, shifted)


def test_ctrl_c_waits_for_the_thread(subject, long, monkeypatch):
    answers, running = long("llama"), []
    inner = beside.attend_blocks

    def slowly(*how):
        running.append(True)
        time.sleep(0.1)
        found = inner(*how)
        running.pop()
        return found

    def interrupted(futures):
        while not running:
            time.sleep(0.001)
        raise KeyboardInterrupt

    monkeypatch.setattr(beside, "attend_blocks", slowly)
    monkeypatch.setattr(serving, "wait", interrupted)
    how = {**BESIDE, **CALLS, "kv": "cpu=100%"}
    with engine_of(subject("llama").path, [50] * 4, NEW_TOKENS, **how) as engine:
        for i, one in enumerate(answers):
            engine.add(str(i), one.prompt, greedy(NEW_TOKENS))
        with pytest.raises(KeyboardInterrupt):
            while engine.sweep() is not None:
                pass
        assert not running and not any(space.taken for space in engine.reach.beside.errands.spaces)


def test_keys_that_a_module_transforms_are_refused_by_name(subject):
    with pytest.raises(UserError, match="--attention cpu: this model transforms keys"):
        LLM(str(subject("deepseek_v3-mla").path), device="emulated", attention="cpu", kv="cpu=100%")


@pytest.mark.parametrize("family", ["gpt_oss-sinks", "mistral-window", "gemma4-shared-kv"])
@pytest.mark.parametrize("attention", ["cpu", "gpu"])
@pytest.mark.parametrize("kv", ["gpu=50%,cpu=50%", "gpu=40%,cpu=30%,disk=30%"])
def test_rows_that_outgrow_the_gpu_lie_on_several_tiers(subject, compare, attended, family, attention, kv):
    model = subject(family)
    prompts, count = [prompt[:n] for prompt, n in zip(model.prompts, (14, 5, 15, 9), strict=False)], 40
    given = {**BESIDE, **CALLS, "rows": 4, "kv": kv, "attention": attention, "spare_blocks": 1}
    trail = Trail()
    with engine_of(model.path, [len(p) for p in prompts], count, **given) as engine:
        trail.watch(engine)
        rows = [engine.add(str(i), prompt, greedy(count)) for i, prompt in enumerate(prompts)]
        split = 0
        while engine.sweep() is not None:
            tables = [row.tables[0] for row in engine.scheduler._room.rows.values() if row.home == "gpu"]
            split += any({b.tier for b in table if b} > {"gpu"} for table in tables)
        tokens = [engine.sequences[row].generated for row in rows]
    compare([generate(model.model, prompt, count) for prompt in prompts], tokens, trail.logits)
    assert split and not trail.dropped and bool(attended) is (attention == "cpu")


def test_a_whole_run_says_what_the_cpu_did_beside_the_gpu(subject, long):
    answers = long("llama")
    how = {"device": "emulated", "dtype": "float32", "unchecked": True, "weights": "gpu=50%,cpu=50%", "kv": "cpu=100%"}
    prompts = [{"prompt_token_ids": (a.prompt * 4)[:100]} for a in answers]
    told: dict[str, object] = {}
    for attention in ("gpu", "cpu"):
        with LLM(str(subject("llama").path), rows=3, attention=attention, page_bytes=PAGE_BYTES, **how) as llm:
            outputs = llm.generate(prompts, SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True))
            told[attention] = [out.outputs[0].token_ids for out in outputs]
            lanes = llm.last_run["lanes"]
        assert ("cpu-compute" in lanes) is (attention == "cpu")
    assert told["cpu"] == told["gpu"]
