import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.cli.fake_planner import GIB, PLAN, POLICY

from penstock.errors import UserError
from penstock.plan.plan import Use
from penstock.plan.policy import Shares
from penstock.plan.saved import Identity, SavedPlan, check, load_plan, save_plan

QWEN = Identity("Qwen3-30B-A3B", "qwen3_moe 0123456789abcdef", 4, 57 * GIB)


def saved(path: Path, edit: Callable[[dict[str, Any]], object] = lambda record: None) -> Path:
    save_plan(PLAN, QWEN.fingerprint, QWEN.page_bytes, path)
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    return path


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    plan = load_plan(saved(tmp_path / "plan.json"))
    assert plan.model == QWEN
    assert plan.placement == PLAN.placement
    assert plan.placement.policy == POLICY
    assert (plan.machine, plan.job) == (PLAN.machine, PLAN.job)
    assert plan.budget == {"gpu": 12 * GIB, "cpu": 24 * GIB, "disk": 645 * GIB}
    assert plan.predicted.total_tok_s == PLAN.predicted.total_tok_s
    assert plan.predicted.lanes == PLAN.predicted.lanes
    check(plan, QWEN)


def test_a_static_policy_comes_back(tmp_path: Path) -> None:
    static = replace(POLICY, admission="static", batch_size=48, num_batches=3, attention="cpu", kv_bits=4, rows=144)
    static = replace(static, cpu_layers=3, cpu_tokens=16)
    assert PLAN.placement is not None
    plan = replace(PLAN, policy=static, placement=replace(PLAN.placement, policy=static))
    save_plan(plan, "f", 1, tmp_path / "p")
    assert load_plan(tmp_path / "p").placement.policy == static


def test_a_plan_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    plan = load_plan(saved(tmp_path / "plan.json"))
    with pytest.raises(UserError, match=r"is for Qwen3-30B-A3B \(qwen3_moe 01.*\), and this is other \(llama ff\)"):
        check(plan, Identity("other", "llama ff", 4, 57 * GIB))
    with pytest.raises(UserError, match=r"has 4 pages of .* and it is cut into 5 pages of .* plan again"):
        check(plan, replace(QWEN, pages=5))


def test_what_cannot_run_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(UserError, match=r"cannot run \(4-bit KV is not there yet\)"):
        save_plan(replace(PLAN, placement=None, why_not="4-bit KV is not there yet"), "f", 1, path)
    with pytest.raises(UserError, match=r"does not fit \(1 GiB of gpu missing\)"):
        save_plan(replace(PLAN, memory={"gpu": Use(GIB, 0, 2 * GIB, 0, 0, 0)}), "f", 1, path)
    assert not path.exists()


def test_no_place_for_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written: No such file"):
        save_plan(PLAN, "f", 1, tmp_path / "none" / "plan.json")


def set_at(*place: Any) -> Callable[[dict[str, Any]], object]:
    *way, last, value = place

    def edit(record: dict[str, Any]) -> None:
        for name in way:
            record = record[name]
        record[last] = value

    return edit


def without(*place: str) -> Callable[[dict[str, Any]], object]:
    *way, last = place

    def edit(record: dict[str, Any]) -> None:
        for name in way:
            record = record[name]
        del record[last]

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_at("penstock_plan", 7), "is of form 7, and 2 is read"),
        (without("penstock_plan"), "is no saved plan"),
        (without("placement", "kv"), "placement.kv is missing"),
        (set_at("placement", "extra", 1), "placement.extra is not known"),
        (set_at("placement", "policy", "rows", 0), "placement.policy.rows is 0: input should be greater"),
        (set_at("placement", "policy", "rows", "many"), 'placement.policy.rows is "many": input should be'),
        (set_at("placement", "policy", "rows", True), "placement.policy.rows is true: input should be"),
        (set_at("placement", "policy", "slots", -1), "placement.policy.slots is -1"),
        (set_at("placement", "policy", "weights", "gpu", 0.9), "placement.policy.weights: the shares sum to 181 %"),
        (set_at("placement", "policy", "kv", "cpu", -0.5), "placement.policy.kv.cpu is -0.5"),
        (set_at("placement", "policy", "admission", "static"), "admission is static beside batch_size None"),
        (set_at("placement", "policy", "batch_size", 4), "admission is continuous beside batch_size 4"),
        (set_at("placement", "policy", "attention", "tape"), 'placement.policy.attention is "tape"'),
        (set_at("placement", "policy", "attention", "disk"), "attention is \"disk\": input should be 'gpu' or 'cpu'"),
        (set_at("placement", "homes", "gpu cpu disk"), "placement.homes names 3 pages, and model.pages is 4"),
        (set_at("placement", "homes", "gpu cpu disk tape"), 'placement.homes: page 4 is on "tape"'),
        (set_at("placement", "homes", ["gpu"]), "placement.homes: give the tier of every page in one text"),
        (set_at("placement", "kv", {"tape": 5}), "placement.kv.tape"),
        (set_at("budget", "cpu", -5), "budget.cpu is -5"),
        (without("budget", "cpu"), "budget.cpu is missing: save the plan again"),
        (without("budget", "gpu"), "budget.gpu is missing: save the plan again"),
        (without("budget", "disk"), "budget.disk is missing: save the plan again"),
        (set_at("budget", "cpu", 0), "budget.cpu is 0, and the plan is on it"),
        (set_at("predicted", "seconds", float("nan")), "predicted.seconds is NaN"),
        (set_at("model", "name", ""), "model.name"),
    ],
)
def test_edited_files_are_told_in_one_line(
    edit: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "plan.json", edit)
    with pytest.raises(UserError) as raised:
        load_plan(path)
    said = str(raised.value)
    assert said.startswith(str(path))
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no whole plan"),
        (b'{"penstock_plan": 2, "mod', "is no whole plan: Unterminated string"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[1]", "is no saved plan"),
        (b"[" * 100_000, "is no saved plan"),
    ],
)
def test_damaged_files(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        load_plan(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_plan(tmp_path / "none")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load_plan(tmp_path)


def test_a_person_can_read_it(tmp_path: Path) -> None:
    save_plan(PLAN, QWEN.fingerprint, QWEN.page_bytes, tmp_path / "p")
    text = (tmp_path / "p").read_text()
    assert '"homes": "gpu cpu disk disk"' in text
    assert len(text.splitlines()) < 80


def test_values_are_frozen(tmp_path: Path) -> None:
    plan = load_plan(saved(tmp_path / "p"))
    assert isinstance(plan, SavedPlan)
    assert plan.placement.policy.kv == Shares(gpu=1.0)


def test_a_disk_on_which_nothing_may_rest_still_holds_page_caches(tmp_path: Path) -> None:
    plan = load_plan(saved(tmp_path / "plan.json"))
    assert replace(plan, budget={"cpu": 5, "disk": 0}).bounds == {"cpu": 5}
