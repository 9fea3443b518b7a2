"""The first layers on the cpu beside an emulated gpu, with all KV: answers are those of transformers."""

import threading
import time
from collections import defaultdict
from typing import Any

import pytest
import torch
from tests.parity import families
from tests.parity.conftest import NEW_TOKENS
from tests.parity.harness import PAGE_BYTES, Trail, engine_of, greedy, run
from tests.parity.test_matrix import JOINED

from penstock import LLM, SamplingParams
from penstock.engine import host, serving
from penstock.engine.host import Host
from penstock.engine.kv_batch import KVBatch
from penstock.engine.serving import Serving
from penstock.errors import UserError
from penstock.memory.clock import Clock

# grouped heads, windows with sinks beside experts, experts, another layout of layers
FAMILIES = ("llama", "gpt_oss-sinks", "qwen3_moe", "gpt2")
SPLIT: dict[str, Any] = {"device": "emulated", "block_tokens": 16, "rows": 4}
CALLS = {"sweep_tokens": 24, "batch_tokens": 7}
STATIC = {"batch_size": 1, "num_batches": 3, "batch_tokens": 64, "rows": None}
HOW: dict[str, dict[str, Any]] = {
    "all in place": {"cpu_layers": 2, "cpu_tokens": 24, **CALLS},
    "prompts stream up": {"cpu_layers": 1, "cpu_tokens": 5, **CALLS},
    "all resident": {"cpu_layers": 2, "cpu_tokens": 5, **CALLS, "weights": "gpu=30%,cpu=70%"},
    "all layers": {"cpu_layers": 3, "cpu_tokens": 24, **CALLS},
    "one call": {"cpu_layers": 2, "cpu_tokens": 6, "sweep_tokens": 200, "batch_tokens": 200},
    "the rest streams": {"cpu_layers": 1, "cpu_tokens": 9, **CALLS, "weights": "cpu=60%,disk=40%", "slots": 1},
    "KV on disk": {"cpu_layers": 2, "cpu_tokens": 9, **CALLS, "kv": "cpu=40%,disk=60%"},
    "little KV": {"cpu_layers": 2, "cpu_tokens": 9, **CALLS, "spare_blocks": 1},
    "static": {"cpu_layers": 2, "cpu_tokens": 9, **STATIC, "batch_size": 2, "num_batches": 2},
}
each_family = pytest.mark.parametrize("family", [pytest.param(f, marks=pytest.mark.xdist_group(f)) for f in FAMILIES])


@pytest.fixture
def seen(monkeypatch):
    """For each layer that the cpu computed: its index, and the names of threads that did."""
    found: list[tuple[int, str]] = []
    inner = Host.compute

    def compute(self, call, index, forward, args, kwargs):
        def named(*given, **more):
            found.append((index, threading.current_thread().name))
            return forward(*given, **more)

        return inner(self, call, index, named, args, kwargs)

    monkeypatch.setattr(Host, "compute", compute)
    return found


@pytest.mark.parametrize("how", HOW)
@each_family
def test_matrix(subject, compare, seen, family, how):
    model, given = subject(family), {**SPLIT, **HOW[how]}
    tokens, trail = run(model.path, model.prompts, NEW_TOKENS, **given)
    compare(model.answers, tokens, trail.logits)
    assert {index for index, _ in seen} == set(range(given["cpu_layers"]))
    assert {thread[:15] for _, thread in seen} == {"penstock-beside"}
    in_place = {sweep.tokens <= given["cpu_tokens"] for sweep in trail.sweeps}
    assert in_place == ({True} if how in ("all in place", "all layers") else {True, False})
    assert (trail.dropped > 0) is (how == "little KV")


class Sealed:
    """What a layer on the host gave, as the model around the layers must leave it alone: on a gpu it is elsewhere."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def each(value: Any, kind: type, change: Any) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, tuple):
        return tuple(each(part, kind, change) for part in value)
    return {name: each(part, kind, change) for name, part in value.items()} if type(value) is dict else value


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=pytest.mark.xdist_group(f)) for f in families.FAMILIES if f not in JOINED]
)
def test_no_model_touches_what_is_on_the_host_between_two_layers(subject, compare, monkeypatch, family):
    model, inner, sealed = subject(family), Host.compute, []

    def compute(self, call, index, forward, args, kwargs):
        given = [each(part, Sealed, lambda one: one.tensor) for part in (args, kwargs)]
        out = inner(self, call, index, forward, *given)
        if index == self.layers - 1:
            return out
        sealed.append(index)
        return each(out, torch.Tensor, Sealed)

    monkeypatch.setattr(Host, "compute", compute)
    how = {**SPLIT, **CALLS, "cpu_layers": 2, "cpu_tokens": 24}
    tokens, trail = run(model.path, model.prompts[:2], NEW_TOKENS, **how)
    compare(model.answers[:2], tokens, trail.logits)
    assert sealed


@pytest.mark.parametrize("family", JOINED)
def test_models_that_are_computed_in_one_place_are_refused_by_name(subject, family):
    with pytest.raises(
        UserError, match=r"^--compute-cpu-layers: (this model transforms keys|layers of this model share)"
    ):
        LLM(str(subject(family).path), device="emulated", compute_cpu_layers=1)


def test_the_gpu_goes_on_for_other_micro_batches_meanwhile(subject, compare, monkeypatch):
    model, resting, served = subject("llama"), [], []
    run_there, with_page = Host._run, Serving._with_page

    def slowly(self, call):
        resting.append(call)
        time.sleep(0.02)
        run_there(self, call)
        resting.pop()

    def serve(self, page, work):
        served.append(bool(resting))
        with_page(self, page, work)

    monkeypatch.setattr(Host, "_run", slowly)
    monkeypatch.setattr(Serving, "_with_page", serve)
    how = {**SPLIT, **STATIC, "cpu_layers": 1, "cpu_tokens": 200, "weights": "gpu=70%,cpu=30%"}
    tokens, trail = run(model.path, model.prompts[:3], NEW_TOKENS, **how)
    compare(model.answers[:3], tokens, trail.logits)
    assert trail.micro_batches == 3
    # were the cpu's layers computed for all micro-batches first, no more than the pages up to their attention would be
    assert sum(served) >= 8 * len(trail.sweeps)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("weights", ["gpu=60%,cpu=40%", "cpu=100%"])
def test_no_micro_batch_overtakes_another_whose_keys_it_attends_to(subject, compare, monkeypatch, family, weights):
    """However long each takes: prompts are cut at their borders."""
    model, written, batches = subject(family), defaultdict(list), []
    append, take = KVBatch.append, host.attend_here

    def noted(self, keys, values, layer):
        time.sleep(0.002 * (id(self) // 64 % 3))
        written[layer].append(self)
        append(self, keys, values, layer)

    def slowly(kv, *how):
        time.sleep(0.002 * (id(kv) // 64 % 3))
        return take(kv, *how)

    monkeypatch.setattr(KVBatch, "append", noted)
    monkeypatch.setattr(host, "attend_here", slowly)
    made = KVBatch.__init__

    def making(self, *how):
        made(self, *how)
        batches.append(self)

    monkeypatch.setattr(KVBatch, "__init__", making)
    how = {**SPLIT, "cpu_layers": 1, "cpu_tokens": 200, "sweep_tokens": 64, "batch_tokens": 16, "weights": weights}
    tokens, trail = run(model.path, model.prompts, NEW_TOKENS, **how)
    compare(model.answers, tokens, trail.logits)
    assert trail.micro_batches > 2
    assert all([id(one) for one in of_layer] == [id(one) for one in batches] for of_layer in written.values())


def test_what_crosses_is_what_a_plan_counts(subject):
    model, clock = subject("llama"), Clock(compute_lane="gpu-compute", tracing=True)
    how = {**SPLIT, **CALLS, "cpu_layers": 2, "cpu_tokens": 9, "weights": "gpu=30%,cpu=70%", "clock": clock}
    trail = Trail()
    with engine_of(model.path, [len(p) for p in model.prompts], NEW_TOKENS, **how) as engine:
        trail.watch(engine)
        for i, prompt in enumerate(model.prompts):
            engine.add(str(i), prompt, greedy(NEW_TOKENS))
        while engine.sweep() is not None:
            pass
    crossed: dict[str, int] = defaultdict(int)
    for event in clock._events:
        crossed[event.what] += event.nbytes
    small, large = (
        sum(sweep.tokens for sweep in trail.sweeps if (sweep.tokens <= 9) is in_place) for in_place in (True, False)
    )
    asked = small + 3 * large  # tokens whose attention the gpu asked for: at its one layer, or at all
    heads, kv_heads, dim, item = 4, 2, 16, 4
    assert crossed["queries"] == crossed["attention"] == asked * heads * dim * item
    assert crossed["keys"] == asked * 2 * kv_heads * dim * item
    assert not any(event.what == "kv" for event in clock._events)
    assert crossed["hidden states"] >= 2 * small * 64 * item


def generated(engine, prompts) -> list[list[int]]:
    rows = [engine.add(str(i), prompt, greedy(NEW_TOKENS)) for i, prompt in enumerate(prompts)]
    while engine.sweep() is not None:
        pass
    return [engine.sequences[row].generated for row in rows]


@pytest.mark.parametrize("where", ["_run", "attend_here"])
def test_an_error_of_the_thread_reaches_the_caller_and_leaves_nothing_behind(subject, monkeypatch, where):
    model = subject("llama")

    def fails(*how):
        raise UserError("cannot read kv-0")

    how = {**SPLIT, **CALLS, "cpu_layers": 1, "cpu_tokens": 24}
    with engine_of(model.path, [50] * 6, NEW_TOKENS, **how) as engine:
        with monkeypatch.context() as broken, pytest.raises(UserError, match="kv-0"):
            broken.setattr(Host if where == "_run" else host, where, fails)
            generated(engine, model.prompts)
        for row in list(engine.sequences):
            engine.abort(row)
        assert not any(space.taken for space in engine.reach.host.errands.spaces)
        assert generated(engine, model.prompts) == [answer.tokens for answer in model.answers]


def test_ctrl_c_waits_for_the_thread(subject, monkeypatch):
    model, running = subject("llama"), []
    inner = Host._run

    def slowly(self, call):
        running.append(call)
        time.sleep(0.1)
        inner(self, call)
        running.pop()

    def interrupted(*how, **more):
        while not running:
            time.sleep(0.001)
        raise KeyboardInterrupt

    monkeypatch.setattr(Host, "_run", slowly)
    monkeypatch.setattr(serving, "wait", interrupted)
    how = {**SPLIT, **CALLS, "cpu_layers": 1, "cpu_tokens": 24}
    with engine_of(model.path, [50] * 6, NEW_TOKENS, **how) as engine:
        with pytest.raises(KeyboardInterrupt):
            generated(engine, model.prompts)
        assert not running and not any(space.taken for space in engine.reach.host.errands.spaces)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_run_says_what_the_cpu_did_beside_the_gpu(subject, dtype, seen):
    model = subject("llama")
    prompts = [{"prompt_token_ids": answer.prompt} for answer in model.answers]
    told: dict[object, object] = {}
    how = {
        "device": "emulated",
        "dtype": dtype,
        "unchecked": True,
        "page_bytes": PAGE_BYTES,
        "rows": 3,
        "kv": "cpu=100%",
    }
    for layers in (None, 2):
        with LLM(str(model.path), weights="gpu=30%,cpu=70%", compute_cpu_layers=layers, attention="cpu", **how) as llm:
            outputs = llm.generate(prompts, SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True))
            told[layers] = [out.outputs[0].token_ids for out in outputs]
            run_of = llm.last_run
        assert {index for index, _ in seen} == set(range(layers or 0))
    assert run_of["lanes"]["cpu-compute"] > 0
    if dtype == "float32":
        assert told[None] == told[2] == [answer.tokens for answer in model.answers]
