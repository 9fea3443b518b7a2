"""Questions answered from configs alone, for this host and for machines that are not at hand."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.plan.asking import asking

from penstock.engine.shape import model_shape
from penstock.errors import UserError
from penstock.machine.presets import preset
from penstock.plan.plan import Plan
from penstock.plan.policy import Shares
from penstock.plan.question import Question
from penstock.plan.rule import decide
from penstock.plan.sizes import JITTER_BYTES
from penstock.planner import computing_on, make_plan, meet, shape_and_machine, shape_of

CPU = Shares(cpu=1.0)

OPT = {
    "model_type": "opt",
    "architectures": ["OPTForCausalLM"],
    "hidden_size": 512,
    "word_embed_proj_dim": 512,
    "ffn_dim": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "torch_dtype": "float16",
}
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "torch_dtype": "float16",
}


def config(directory: Path, values: dict[str, Any]) -> str:
    path = directory / "config.json"
    path.write_text(json.dumps(values))
    return str(path)


def question(**more: Any) -> Question:
    return asking(prompt_len=32, gen_len=4, num_prompts=8, machine="t4-flexgen", **more)


def planned(directory: Path, values: dict[str, Any], **more: Any) -> Plan:
    return make_plan(config(directory, values), question(cost_model="flexgen", **more))


def test_flexgen_s_model_is_told_beside_the_default_one(tmp_path: Path) -> None:
    told = planned(tmp_path, OPT)
    assert told.baseline is not None and told.baseline.best is not None
    assert told.predicted.total_tok_s > 0 and told.baseline.of_policy.predicted.tok_s > 0
    assert not any("heads" in line or "an ffn" in line for line in told.baseline.assumes)
    assert make_plan(config(tmp_path, OPT), question()).baseline is None


def test_of_shared_heads_it_is_said_what_the_equations_assume(tmp_path: Path) -> None:
    told = planned(tmp_path, LLAMA)
    assert told.baseline is not None
    assert any("2 KiB a token and layer; this model keeps 512 B" in line for line in told.baseline.assumes)


def test_a_machine_without_a_gpu_is_none_that_the_equations_know(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no gpu"):
        make_plan(
            config(tmp_path, OPT), question(cost_model="flexgen").__class__(machine="m-class", cost_model="flexgen")
        )


def test_the_shape_is_that_which_is_planned_for(tmp_path: Path) -> None:
    model = config(tmp_path, LLAMA)
    assert shape_of(model, question()) == model_shape(meet(model, question()).model)


@pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads", "num_key_value_heads"])
def test_a_size_of_zero_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"is 0, which|hidden_size 0|by zero") as refused:
        shape_of(config(tmp_path, {**LLAMA, name: 0}), question())
    assert "\n" not in str(refused.value)


NO_DISK = """
[memory]
cpu = "{memory}"
[processors.cpu]
attention = "20GFLOP/s"
kv_bytes_per_s = "10GB/s"
activation_bytes_per_s = "10GB/s"
products.float32 = "100GFLOP/s"
"""


def without_disk(directory: Path, memory: str) -> str:
    path = directory / "small.toml"
    path.write_text(NO_DISK.format(memory=memory))
    return str(path)


def test_a_machine_without_a_disk_holds_everything_in_memory(tmp_path: Path) -> None:
    asked = asking(prompt_len=32, gen_len=4, num_prompts=8, machine=without_disk(tmp_path, "2GiB"))
    told = make_plan(config(tmp_path, LLAMA), asked)
    assert told.placement is None and told.policy.weights == Shares(cpu=1.0)
    with pytest.raises(UserError, match=r"resident pages .* The least that works is"):
        make_plan(config(tmp_path, LLAMA), replace(asked, machine=without_disk(tmp_path, "540MiB")))


def test_a_policy_that_overflows_a_machine_without_a_disk_is_priced(tmp_path: Path) -> None:
    machine = without_disk(tmp_path, "540MiB")
    told = make_plan(config(tmp_path, LLAMA), asking(machine=machine, weights=CPU, kv=CPU, rows=1000))
    assert not told.fits and told.memory["cpu"].short > 0


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        (
            {"weights": Shares(gpu=0.5, cpu=0.5), "kv": Shares(cpu=1.0), "rows": 4},
            "--weights puts 50% on gpu, and M4 laptop",
        ),
        ({"kv": Shares(gpu=1.0)}, "--kv puts 100% on gpu"),
        ({"attention": "gpu"}, "--attention gpu: .* has no gpu; leave it out"),
    ],
)
def test_tiers_that_a_machine_does_not_have_are_refused(tmp_path: Path, wishes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_plan(config(tmp_path, LLAMA), asking(machine="m-class", **wishes))


def test_a_gpu_that_does_not_compute_is_left_out() -> None:
    both = preset("rtx4090")
    alone = computing_on("cpu", both)
    assert alone.compute == "cpu" and "gpu" not in alone.memory
    assert computing_on("gpu", both) is both
    with pytest.raises(UserError, match="measured without its gpu"):
        computing_on("gpu", alone)


def here(**more: Any) -> Question:
    return asking(prompt_len=32, gen_len=4, num_prompts=8, **more)


def test_a_policy_that_is_all_given_is_told_of_as_a_run_would_have_it(tmp_path: Path) -> None:
    asked = here(weights=Shares(cpu=0.5, disk=0.5), kv=CPU, rows=4)
    plan = make_plan(config(tmp_path, LLAMA), asked)
    case = meet(config(tmp_path, LLAMA), asked).case(asked)
    assert plan.policy == decide(case.shape.footprint, case.job, case.ledger, case.asked, "cpu", 0).policy
    assert plan.fits and plan.placement is not None and plan.runners_up


@pytest.mark.parametrize("wishes", [{"weights": CPU, "kv": CPU, "rows": 4}, {"weights": CPU}, {"rows": 2}])
def test_what_was_fixed_is_priced_where_no_run_would_take_it(tmp_path: Path, wishes: dict[str, Any]) -> None:
    plan = make_plan(config(tmp_path, LLAMA), here(cpu_memory=64 << 20, **wishes))
    assert not plan.fits and plan.placement is None
    assert plan.memory["cpu"].short > 0 and plan.predicted.total_tok_s > 0
    assert any("The least that works is" in note for note in plan.notes)


def test_budgets_that_nothing_fits_are_refused_where_nothing_was_fixed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="The least that works is"):
        make_plan(config(tmp_path, LLAMA), here(cpu_memory=64 << 20))


@pytest.mark.parametrize("budget", [64 << 20, 514 << 20])
@pytest.mark.parametrize(
    ("machine", "wishes"),
    [("t4-flexgen", {"weights": CPU}), ("skylake-2core", {"weights": CPU}), ("t4-flexgen", {"kv": CPU})],
)
def test_the_least_budget_named_for_another_machine_is_what_is_missing_and_works(
    tmp_path: Path, machine: str, wishes: dict[str, Any], budget: int
) -> None:
    model, asked = config(tmp_path, LLAMA), replace(here(**wishes), machine=machine)
    short = make_plan(model, replace(asked, cpu_memory=budget))
    (told,) = (note for note in short.notes if "too small" in note)
    assert re.search("(the interpreter takes|taken already) 512 MiB", told)
    least = int(re.search(r"The least that works is (\d+)MiB", told)[1]) << 20  # type: ignore[index]  # it is there
    assert make_plan(model, replace(asked, cpu_memory=least)).fits
    assert 0 <= least - budget - short.memory["cpu"].short <= JITTER_BYTES + (1 << 20)


def test_what_lies_in_the_checkpoint_takes_nothing_of_the_disk_s_budget(tmp_path: Path) -> None:
    plan = make_plan(config(tmp_path, LLAMA), here(weights=Shares(cpu=0.5, disk=0.5), disk_memory=1 << 20))
    assert plan.memory["disk"].weights > 1 << 20
    assert plan.fits and plan.placement is not None


def test_the_disk_of_another_machine_holds_the_checkpoint_first(tmp_path: Path) -> None:
    model, asked = config(tmp_path, LLAMA), question(weights=Shares(cpu=0.5, disk=0.5), kv=CPU, rows=4)
    disk = make_plan(model, asked).memory["disk"]
    assert disk.taken == sum(page.nbytes for page in shape_of(model, asked).pages) > disk.weights > 0
    assert disk.needed == disk.taken
    budgeted = make_plan(model, replace(asked, disk_memory=1 << 20)).memory["disk"]
    assert (budgeted.taken, budgeted.needed, budgeted.short) == (0, 0, 0)


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"weights": Shares(gpu=1.0)}, "--weights puts 100% on gpu, and this host has none: use cpu and disk"),
        ({"gpu_memory": 1 << 30}, "--gpu-memory is given, and this host has no gpu: leave it out"),
        ({"attention": "gpu"}, "--attention gpu: this host has no gpu; leave it out"),
        ({"batch_size": 2}, "--batch-size needs --num-batches beside it"),
    ],
)
def test_what_was_asked_is_checked_before_the_host_is_measured(
    tmp_path: Path, wishes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.planner.host_machine", None)
    with pytest.raises(UserError, match=said):
        make_plan(config(tmp_path, LLAMA), here(device="cpu", **wishes))


def test_a_measurement_is_told_what_the_budgets_leave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def measured(extents: object, offload: object, on_event: object, room: dict[str, int]) -> None:
        raise Asked(room)

    monkeypatch.setattr("penstock.profiling.here.host_machine", measured)
    with pytest.raises(Asked) as asked:
        make_plan(config(tmp_path, LLAMA), here(cpu_memory=1 << 40, disk_memory=5 << 30, device="cpu"))
    (room,) = asked.value.args
    assert room.keys() == {"cpu", "disk"}
    assert room["disk"] == 5 << 30 and 0.9 * 2**40 < room["cpu"] < 2**40


def test_the_comparison_of_paging_is_for_the_disk_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def measured(plan: Any, *rest: Any) -> Any:
        seen.append(plan)
        return preset("skylake-2core")

    monkeypatch.setattr("penstock.planner.host_machine", measured)
    shape, machine = shape_and_machine(config(tmp_path, LLAMA), here(device="cpu"))
    assert seen[0] is not None and seen[0].source.name == shape.name
    assert machine.name == preset("skylake-2core").name
    assert shape_and_machine(config(tmp_path, LLAMA), question())[1].name == preset("t4-flexgen").name


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"latency_s": 1000.0}, r"a row takes .* from its first prompt token to its last token, within the 16 min"),
        ({"latency_s": 1e-6}, "and nothing that was tried keeps to"),
        ({"token_s": 1000.0}, "a row waits .* for each token, within"),
    ],
)
def test_bounds_are_answered(tmp_path: Path, bounds: dict[str, float], said: str) -> None:
    plan = make_plan(config(tmp_path, LLAMA), question(objective="latency", **bounds))
    (note,) = plan.notes
    assert re.search(said, note), note


def test_a_bound_leaves_a_row_as_many_sweeps_as_it_generates_tokens(tmp_path: Path) -> None:
    model, asked = config(tmp_path, LLAMA), question(objective="latency")
    most = 4 * make_plan(model, asked).predicted.steady.seconds * 1.5  # for all four tokens, prompt and all
    bounded = make_plan(model, replace(asked, latency_s=most))
    assert 4 * bounded.predicted.steady.seconds <= most
    assert meet(model, replace(asked, latency_s=most)).case(replace(asked, latency_s=most)).token_s == most / 4


def test_prompts_that_begin_alike_are_computed_once(tmp_path: Path) -> None:
    header = list(range(100, 132))
    prompts = [[*header, *(1000 * i + j for j in range(8))] for i in range(1, 11)]
    alike = replace(question(), lengths=[(40, 4)] * 10, num_prompts=10, prompts=prompts)
    model = config(tmp_path, LLAMA)
    assert make_plan(model, alike).predicted.prefill_tokens == 32 + 10 * 8
    assert make_plan(model, replace(alike, prompts=None)).predicted.prefill_tokens == 400


def test_prompts_beyond_the_model_s_context_are_told_of(tmp_path: Path) -> None:
    plan = make_plan(config(tmp_path, LLAMA), replace(question(), lengths=[(32, 4), (256, 4), (300, 4)], num_prompts=3))
    assert plan.notes == ("2 prompts are longer than the model's context of 256 tokens allows, and a run refuses them",)


def test_attention_beside_a_gpu_that_holds_all_kv_is_told_to_change_nothing(tmp_path: Path) -> None:
    on_gpu, beside = (make_plan(config(tmp_path, LLAMA), question(attention=asked)) for asked in (None, "cpu"))
    assert beside.memory["cpu"].kv == beside.memory["disk"].kv == 0
    assert not [note for note in on_gpu.notes if "--attention cpu" in note]
    assert [note for note in beside.notes if "--attention cpu changes nothing" in note]


def test_more_layers_on_the_cpu_than_the_model_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--compute-cpu-layers 3: this model has 2 decoder layers"):
        make_plan(config(tmp_path, LLAMA), asking(machine="rtx4090", cpu_layers=3))
