from dataclasses import replace

import pytest
from tests.cli.fake_planner import GIB, PLAN, POLICY, PREDICTION

from penstock.cli.plan_json import record
from penstock.cli.plan_table import table
from penstock.plan.baseline import Baseline, Said
from penstock.plan.flexgen import FlexGenPrediction
from penstock.plan.flexgen_group import FlexGenPolicy
from penstock.plan.plan import Gain, Plan, Use
from penstock.plan.policy import Shares


def lines(plan: Plan, width: int = 80) -> list[str]:
    return [line.text for line in table(plan, width)]


def test_the_whole_answer() -> None:
    assert lines(PLAN) == [
        "model           Qwen3-30B-A3B, 56.7 GiB of weights",
        "job             2,000 prompts of 480 tokens, 150 to generate",
        "machine         RTX 4070 12 GiB · 24 GiB cpu · nvme 3.1 GB/s read",
        "",
        "predicted       13.8 tok/s: 300,000 tokens in 6 h 02 min · prefill 640 tok/s ·",
        "                decode 14.7 tok/s",
        "limited by      disk→cpu, busy 87 % of the time",
        "",
        "                          gpu          cpu         disk",
        "weights               5.1 GiB     18.2 GiB     33.4 GiB",
        "KV                    1.9 GiB            –            –   196 rows",
        "activations           256 MiB            –            –",
        "buffers               2.6 GiB      1.1 GiB            –",
        "taken already               –      512 MiB            –",
        "free                  2.2 GiB      4.2 GiB      612 GiB",
        "budget                 12 GiB       24 GiB      645 GiB",
        "",
        "policy          weights gpu 9 %, cpu 32 %, disk 59 % · KV on gpu ·",
        "                activations on gpu",
        "                196 rows · 1,024 tokens a sweep · 512 a call · 3 page slots",
        "",
        "a sweep takes   13.4 s for 196 rows, 823 tokens · disk→cpu 11.6 s (87 %) ·",
        "                cpu→gpu 4.0 s (30 %) · gpu-compute 2.1 s (16 %)",
        "it could carry  11,400 tokens for the same time (T*); it carries 7 % of that",
        "",
        "what would help disk→cpu twice as fast    +71 %",
        "                one more GiB of gpu       +22 %   120 rows more",
        "                one more GiB of cpu        +3 %",
        "                no use: cpu→gpu twice as fast",
        "                next to the optimum (duals): +0.4 tok/s per GiB of cpu ·",
        "                +4.1 tok/s per GB/s disk→cpu",
        "",
        "instead         static split            2.1 tok/s   cpu computes 40 of 48 layers",
        "                one layer at a time     0.3 tok/s   nothing runs beside the",
        "                                                    transfers",
        "                all on the cpu       does not fit   57 GiB of weights in 24 GiB",
        "note            the profile of this host is 2 days old: penstock profile",
        "                measures it again",
    ]


@pytest.mark.parametrize("width", [60, 72, 80, 100, 200])
def test_no_line_is_wider_than_asked(width: int) -> None:
    assert max(len(line) for line in lines(PLAN, width)) <= min(width, 100)


def test_duals_are_beside_the_point() -> None:
    assert [line.text.split()[0] for line in table(PLAN, 80) if line.dim] == ["next", "+4.1"]


def test_what_does_not_fit_comes_first() -> None:
    memory = {**PLAN.memory, "gpu": Use(GIB, 0, 2 * GIB, 0, 0, 0), "cpu": Use(GIB, GIB // 2, GIB, 0, 0, 0)}
    said = lines(replace(PLAN, memory=memory, placement=None, why_not="4-bit weights are not there yet"))
    assert said[4:7] == [
        "does not fit:   gpu 1 GiB short (1,073,741,824 bytes) ·",
        "                cpu 512 MiB short (536,870,912 bytes)",
        "cannot run:     4-bit weights are not there yet",
    ]
    assert said[7].startswith("predicted       13.8 tok/s: 300,000 tokens in 6 h 02 min, if it did")
    assert "free                   -1 GiB     -512 MiB      612 GiB" in said


def test_tiers_that_are_not_there_are_left_out() -> None:
    memory = {"gpu": Use(0, 0, 0, 0, 0, 0), "cpu": PLAN.memory["cpu"], "disk": PLAN.memory["disk"]}
    assert "                          cpu         disk" in lines(replace(PLAN, memory=memory))


def test_a_static_policy() -> None:
    policy = replace(POLICY, admission="static", batch_size=48, num_batches=3, attention="cpu", kv_bits=4)
    said = "\n".join(lines(replace(PLAN, policy=policy), 100))
    assert "3 micro-batches of 48 rows, entering together" in said
    assert "attention on cpu · 4-bit KV" in said


def test_a_sweep_that_carries_enough() -> None:
    full = replace(PREDICTION, hidden_tokens=500.0)
    said = " ".join(" ".join(lines(replace(PLAN, predicted=full))).split())
    assert "no more for the same time: its 823 tokens compute for longer than its pages take (500)" in said


@pytest.mark.parametrize("hidden", [0.0, float("inf")])
def test_where_nothing_streams_nothing_is_said_of_hidden_tokens(hidden: float) -> None:
    assert "it could carry" not in "\n".join(lines(replace(PLAN, predicted=replace(PREDICTION, hidden_tokens=hidden))))


def test_nothing_helps() -> None:
    said = lines(replace(PLAN, gains=[Gain("one more GiB of cpu", 13.8, 196)], duals={}))
    assert "what would help no use: one more GiB of cpu" in said


def test_large_gains_are_multiples() -> None:
    said = lines(replace(PLAN, gains=[Gain("one more GiB of cpu", 41.5, 100)], duals={}))
    assert "what would help one more GiB of cpu     ×3.0   96 rows fewer" in said


def test_record() -> None:
    value = record(PLAN)
    assert value["memory"]["gpu"]["weights"] == int(5.1 * GIB)
    assert value["memory"]["disk"]["short"] == 0
    assert value["short"] == {}
    assert value["predicted"]["lanes"]["disk→cpu"] == pytest.approx(11.6 * 1621)
    assert value["predicted"]["steady"]["tokens"] == 823
    assert {"prefill_tok_s", "decode_tok_s", "total_tok_s", "seconds"} <= value["predicted"].keys()
    assert value["what_if"][0] == {"change": "one more GiB of cpu", "tok_s": 14.2, "rows": 196}
    assert value["runners_up"][2]["tok_s"] is None
    assert (value["job"], value["model"], value["machine"]) == (PLAN.job, PLAN.model, PLAN.machine)
    assert value["duals"]["cpu"] == pytest.approx(0.4 / GIB)


def test_record_has_only_numbers_that_json_has() -> None:
    assert record(replace(PLAN, predicted=replace(PREDICTION, hidden_tokens=float("inf"))))["predicted"][
        "hidden_tokens"
    ] is None  # fmt: skip


def flexgen() -> Baseline:
    policy = FlexGenPolicy(Shares(cpu=1.0), Shares(gpu=0.25, cpu=0.75), Shares(gpu=1.0), 14, 14, cpu_attention=False)
    lanes = {"cpu→gpu": 0.2, "disk→cpu": 0.5, "compute": 0.1}
    fits = FlexGenPrediction(lanes, {**lanes, "compute": 0.9}, 100.0, 17.5, {"gpu": GIB}, 100, {})
    return Baseline(Said(policy, replace(fits, tok_s=12.0, short={"gpu": 5})), Said(policy, fits), ["heads are many"])


def test_flexgen_s_model_stands_beside_the_prediction() -> None:
    told = lines(replace(PLAN, baseline=flexgen()), 80)
    assert told[told.index("limited by      disk→cpu, busy 87 % of the time") + 2 :][:7] == [
        "FlexGen's model this policy: 12 tok/s if it did fit, 14 × 14 rows ·",
        "                prefill held by disk→cpu, decode by compute",
        "                its own best: 17.5 tok/s, 14 × 14 rows ·",
        "                prefill held by disk→cpu, decode by compute · weights on cpu ·",
        "                KV gpu 25 %, cpu 75 % · activations on gpu · attention on gpu",
        "                it takes it that heads are many",
        "",
    ]
    none = lines(replace(PLAN, baseline=replace(flexgen(), best=None)), 80)
    assert "                finds no placement that fits as many rows" in none


def test_flexgen_s_model_as_json() -> None:
    assert "flexgen" not in record(PLAN)
    said = record(replace(PLAN, baseline=flexgen()))["flexgen"]
    assert said["best"]["predicted"]["total_tok_s"] == 17.5 and said["best"]["fits"]
    assert said["best"]["policy"]["kv"] == {"gpu": 0.25, "cpu": 0.75, "disk": 0.0}
    assert said["of_policy"]["short"] == {"gpu": 5} and not said["of_policy"]["fits"]
    assert said["of_policy"]["predicted"]["binding_lanes"] == {"prefill": "disk→cpu", "decode": "compute"}
    assert said["assumes"] == ["heads are many"]


def test_weights_that_are_read_where_they_lie_are_told_apart() -> None:
    disk = replace(PLAN.memory["disk"], budget=GIB, in_place=PLAN.memory["disk"].weights)
    said = lines(replace(PLAN, memory={**PLAN.memory, "disk": disk}))
    assert "weights               5.1 GiB     18.2 GiB     33.4 GiB   disk: read in place" in said
    assert "free                  2.2 GiB      4.2 GiB        1 GiB" in said


def test_prompts_that_begin_alike_are_told_of() -> None:
    shared = replace(PREDICTION, prefill_tokens=240_000)
    said = " ".join(" ".join(lines(replace(PLAN, predicted=shared))).split())
    assert "75 % of the prompts' tokens are computed once for rows that begin alike" in said
