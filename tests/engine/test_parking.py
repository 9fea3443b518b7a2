"""Suspended calls leave memory and come back whole; what is not theirs stays; nothing is left behind."""

import weakref
from concurrent.futures import Future

import pytest
import torch
import transformers
from torch import nn

from penstock import LLM, SamplingParams
from penstock.engine.call import Call, current_call
from penstock.engine.parking import Parking, held_storages
from penstock.errors import UserError
from penstock.memory.buffers import aligned_buffer
from penstock.memory.clock import Clock
from penstock.memory.device import CpuDevice, EmulatedGpu
from penstock.memory.scratch_file import ScratchFile
from penstock.plan.policy import Shares

PLACES = [(CpuDevice, "disk"), (EmulatedGpu, "cpu"), (EmulatedGpu, "disk")]


def stop(page=0):
    current_call().hold(page)


def working(rows=300, seen=None):
    """A call that holds tensors in several ways over two stops and returns their sum."""

    def inner(hidden, **kwargs):
        doubled = hidden * 2
        view = doubled[1:, ::2]
        stop(1)
        return view.sum() + kwargs["position"][0].sum() + doubled.sum()

    def forward(_):
        hidden = torch.arange(rows * 8, dtype=torch.float32).view(rows, 8)
        if seen is not None:
            seen.append(hidden)
        stop(0)
        return inner(hidden + 1, position=(torch.ones(rows), torch.zeros(rows))) + hidden.sum()

    return Call(None, forward)


def expected(rows=300):
    hidden = torch.arange(rows * 8, dtype=torch.float32).view(rows, 8)
    doubled = (hidden + 1) * 2
    return doubled[1:, ::2].sum() + rows + doubled.sum() + hidden.sum()


def run(parking, calls):
    """What the engine does: every call at every page."""
    parking.begin(calls)
    for call in calls:
        call.go_on()
        parking.park(call)
    for page in (0, 1):
        for call in calls:
            parking.unpark(call)
            call.resume(page, {})
            parking.park(call)
    return [call.logits for call in calls]


def nbytes(call):
    return sum(storage.nbytes() for storage in held_storages(call))


@pytest.fixture
def made(tmp_path):
    """A Parking on a device, with the clock that it uses."""
    opened = []

    def make(device, module=None, **shares):
        opened.append((device := device(), Parking(Shares(**shares), module or nn.Module(), device, Clock(), tmp_path)))
        return opened[-1][1]

    yield make
    for device, parking in opened:
        parking.close()
        device.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inference", [True, False], ids=["inference", "normal"])
@pytest.mark.parametrize(("device", "home"), PLACES, ids=lambda p: getattr(p, "__name__", p))
def test_out_and_back(made, device, home, inference):
    parking = made(device, **{home: 1.0})
    with torch.inference_mode(inference):
        assert run(parking, [working(), working(7000), working(40)]) == [expected(), expected(7000), expected(40)]
    assert [tier for tier, held in parking.peak.items() if held] == [home]


def test_memory_is_given_back_at_a_stop(made, tmp_path):
    parking, seen = made(CpuDevice, disk=1.0), []
    call = working(seen=seen)
    parking.begin([call])
    call.go_on()
    storage, values = seen[0].untyped_storage(), seen[0].clone()
    assert nbytes(call) >= values.nbytes
    parking.park(call)
    assert (storage.nbytes(), nbytes(call)) == (0, 0)
    assert list(tmp_path.iterdir()) == [], "what is on disk has no name"
    parking.unpark(call)
    assert torch.equal(seen[0], values)


def test_lanes_count_the_bytes(made):
    parking = made(EmulatedGpu, disk=1.0)
    run(parking, [working()])
    moved = {lane: use["bytes"] for lane, use in parking.clock.summary()["lanes"].items() if use["bytes"]}
    assert set(moved) == {"gpu→cpu", "cpu→gpu", "cpu→disk", "disk→cpu"}
    assert len(set(moved.values())) == 1, "as much comes back as went out"


def test_shares_are_met_by_micro_batches(made):
    parking = made(EmulatedGpu, gpu=0.25, cpu=0.25, disk=0.5)
    run(parking, [working() for _ in range(8)])
    one = parking.peak["gpu"] // 2
    assert parking.peak == {"gpu": 2 * one, "cpu": 2 * one, "disk": 4 * one}


def test_weights_and_arenas_stay(made):
    module = nn.Linear(64, 64)
    module.table = torch.ones(4096)
    arena = aligned_buffer(1 << 16).view(torch.float32)

    def forward(_):
        weight, table, block = module.weight.detach(), module.table, arena[:4096]
        mine = torch.ones(2048)
        stop()
        return weight.sum() + table.sum() + block.sum() + mine.sum()

    parking, call = made(CpuDevice, module, disk=1.0), Call(None, forward)
    parking.begin([call])
    call.go_on()
    parking.park(call)
    assert parking.peak["disk"] == 2048 * 4
    assert module.weight.untyped_storage().nbytes() and module.table.untyped_storage().nbytes()


def test_closed_over_tensors_stay(made):
    shared = torch.ones(4096)

    def forward(_):
        stop()
        return shared.sum()

    parking, call = made(CpuDevice, disk=1.0), Call(None, forward)
    parking.begin([call])
    call.go_on()
    parking.park(call)
    assert shared.sum() == 4096


def test_looking_keeps_nothing_alive(made):
    dead = []

    def forward(_):
        hidden = torch.ones(4096)
        dead.append(weakref.ref(hidden))
        stop(0)
        hidden = hidden.sum()
        stop(1)
        return hidden

    parking, call = made(CpuDevice, disk=1.0), Call(None, forward)
    parking.begin([call])
    call.go_on()
    parking.park(call)
    parking.unpark(call)
    call.resume(0, {})
    assert dead[0]() is None


def test_a_sweep_that_broke_off_is_forgotten(made):
    parking = made(CpuDevice, disk=1.0)
    broken = [working(), working()]
    parking.begin(broken)
    for call in broken:
        call.go_on()
        parking.park(call)
    assert run(parking, [working()]) == [expected()]


def test_an_error_of_a_sweep_that_broke_off_is_not_one_of_the_next(made, monkeypatch):
    parking = made(CpuDevice, disk=1.0)
    failed = Future()
    failed.set_exception(UserError("cannot write activations-0"))
    with monkeypatch.context() as failing:
        failing.setattr(ScratchFile, "write", lambda self, offset, buffer: failed)
        with pytest.raises(UserError, match="activations-0"):
            run(parking, [working()])
    assert run(parking, [working()]) == [expected()]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    path = tmp_path_factory.mktemp("tiny")
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(path)
    return path


def test_a_run_with_one_micro_batch_on_disk(tiny, tmp_path):
    prompts = [{"prompt_token_ids": list(range(3, 3 + n))} for n in (9, 20, 5)]
    params = SamplingParams(max_tokens=4, ignore_eos=True, temperature=0)
    tokens, placed = [], []
    for activations in (None, "disk=100%"):
        options = {"dtype": "float32", "unchecked": True, "offload_dir": tmp_path / "offload"}
        with LLM(str(tiny), activations=activations, **options) as llm:
            tokens.append([out.outputs[0].token_ids for out in llm.generate(prompts, params)])
            placed.append(llm.last_run["placed_bytes"]["activations"])
            written = llm.last_run["links"]["cpu_to_disk"]["bytes"]
            taken = llm.last_run["peak_bytes"]["disk"]
    assert tokens[0] == tokens[1]
    assert placed[0]["cpu"] and not placed[0]["disk"]
    assert placed[1]["disk"] >= 34 * 64 * 4 and not placed[1]["cpu"]
    assert written > placed[1]["disk"]
    assert taken >= 64 << 10, "of a file, all of it"
    assert list((tmp_path / "offload").iterdir()) == []
