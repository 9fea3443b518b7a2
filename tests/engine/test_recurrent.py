"""Families whose layers keep a state per row generate the tokens that transformers generates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from penstock.engine.engine import Engine
from penstock.errors import UserError
from penstock.llm import LLM
from penstock.outlook import Outlook
from penstock.plan.rule import decide
from penstock.plan.types import Asked, Footprint, Job, Ledger, Placement
from penstock.sampling import SamplingParams, resolve

_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZE: dict[str, Any] = {"hidden_size": 32, "vocab_size": 100, "tie_word_embeddings": False, **_IDS}
_GQA: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, **_SIZE}
_DEEP: dict[str, Any] = {"num_hidden_layers": 4, **_GQA}
_MAMBA: dict[str, Any] = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_chunk_size": 8}
_DELTA: dict[str, Any] = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_MOE: dict[str, Any] = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
_SHARED: dict[str, Any] = {"shared_expert_intermediate_size": 16, **_MOE}
_LATENT: dict[str, Any] = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_LINEAR = ["linear_attention", "full_attention"] * 2

FAMILIES: dict[str, Callable[[], Any]] = {
    "falcon_h1": lambda: hf.FalconH1Config(mamba_d_ssm=64, mamba_d_head=16, **_MAMBA, **_DEEP),
    "jamba": lambda: hf.JambaConfig(
        attn_layer_period=2, attn_layer_offset=1, num_experts=4, mamba_d_state=8, mamba_dt_rank=4, **_DEEP
    ),
    "kimi_linear": lambda: hf.KimiLinearConfig(
        moe_intermediate_size=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        linear_head_dim=8,
        linear_num_heads=4,
        layer_types=_LINEAR,
        mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
        **_LATENT,
        **{**_DEEP, "num_key_value_heads": 4},
    ),
    "lfm2": lambda: hf.Lfm2Config(layer_types=["conv", "full_attention"] * 2, block_multiple_of=8, **_DEEP),
    "nemotron_h": lambda: hf.NemotronHConfig(
        layers_block_type=["mamba", "moe", "attention", "mamba", "mlp"],
        head_dim=8,
        ssm_state_size=8,
        mamba_num_heads=4,
        mamba_head_dim=16,
        n_groups=2,
        chunk_size=8,
        n_routed_experts=4,
        moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16,
        **_GQA,
    ),
    "qwen3_next": lambda: hf.Qwen3NextConfig(layer_types=_LINEAR, head_dim=16, **_DELTA, **_SHARED, **_DEEP),
    "zamba2": lambda: hf.Zamba2Config(
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        mamba_d_state=8,
        n_mamba_heads=4,
        chunk_size=8,
        adapter_rank=8,
        **_DEEP | {"num_key_value_heads": 4},
    ),
    "mamba": lambda: hf.MambaConfig(state_size=8, num_hidden_layers=3, time_step_rank=4, **_SIZE),
    "zaya": lambda: hf.ZayaConfig(head_dim=16, router_hidden_size=16, **_MOE | {"num_experts_per_tok": 1}, **_DEEP),
}

REFUSED: dict[str, str] = {
    "minimax": "minimax models are refused: .*cache of its own",
    "recurrent_gemma": "recurrent_gemma models are refused: they keep state outside of the cache",
}
_REFUSED_CONFIGS: dict[str, Callable[[], Any]] = {
    "minimax": lambda: hf.MiniMaxConfig(layer_types=_LINEAR, num_local_experts=4, block_size=8, **_DEEP),
    "recurrent_gemma": lambda: hf.RecurrentGemmaConfig(lru_width=32, attention_window_size=8, **_DEEP),
}

_NOT_IN_5_5 = {"kimi_linear", "zaya", "nemotron_h"}  # the last with other layer types than these

PROMPTS = [torch.arange(3, 3 + n).mul(7 * n + 1).remainder(97).add(3).tolist() for n in (7, 21, 4, 1, 12)]
TOKENS = 5
STREAMED: dict[str, Any] = {"weights": "disk=100%", "rows": 3, "sweep_tokens": 30, "batch_tokens": 12}


def _made(family: str, folder: Path) -> Any:
    """A model whose random weights are large enough that its tokens depend on its past."""
    if family in _NOT_IN_5_5 and hf.__version__.startswith("5.5."):
        pytest.skip(f"transformers {hf.__version__} has no such {family}")
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(FAMILIES[family](), attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config = hf.GenerationConfig()
    model.save_pretrained(folder)
    return model


def _expected(model: Any, prompt: list[int]) -> torch.Tensor:
    """The logits of each step of transformers' own greedy generation, (TOKENS, vocabulary)."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.cat(out.logits)


def _engine(folder: Path, **options: Any) -> tuple[LLM, Engine]:
    llm = LLM(str(folder), dtype="float32", page_bytes=3000, unchecked=True, **options)
    longest = max(map(len, PROMPTS))
    job = Job(len(PROMPTS), longest + TOKENS, longest + TOKENS, longest)
    return llm, llm.run([], job, Outlook(0)).engine


def _assert_same(
    model: Any, folder: Path, disturb: Callable[[Engine, int], None] | None = None, **options: Any
) -> None:
    """Each step's logits and tokens are those of ``generate``; a page is loaded once per sweep; no state is left."""
    llm, engine = _engine(folder, **options)
    with llm:
        sampling = resolve(SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=0), {})
        rows = {engine.add(str(i), prompt, sampling): prompt for i, prompt in enumerate(PROMPTS)}
        expected = {row: _expected(model, prompt) for row, prompt in rows.items()}
        seen: dict[int, list[torch.Tensor]] = {row: [] for row in rows}
        engine.observe = lambda row, position, logits: seen[row].append(logits.clone())
        sweeps = 0
        while engine.sweep() is not None:
            sweeps += 1
            assert len(set(engine._order)) == len(engine._order)
            if disturb is not None:
                disturb(engine, sweeps)
        assert engine.states.nbytes == 0
    for row, logits in expected.items():
        found = torch.stack(seen[row])
        assert torch.equal(found.argmax(-1), logits.argmax(-1))
        assert float((found - logits).abs().max() / logits.abs().max()) < 1e-4
    assert len({tuple(logits.argmax(-1).tolist()) for logits in expected.values()}) == len(PROMPTS)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"falcon_h1", "jamba"}))  # they are below
def test_every_step_equals_generate(family: str, tmp_path: Path) -> None:
    _assert_same(_made(family, tmp_path), tmp_path, **STREAMED)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 2, "num_batches": 2},
        {"kv": "cpu=50%,disk=50%", "batch_tokens": 16},
        {"device": "emulated", "gpu_memory": "200MiB", "rows": 3, "weights": "gpu=30%,cpu=30%,disk=40%"},
    ],
    ids=["static", "kv on disk", "emulated gpu"],
)
def test_placements_and_admission(options: dict[str, Any], tmp_path: Path) -> None:
    _assert_same(_made("falcon_h1", tmp_path), tmp_path, **options)


def test_rows_computed_again_take_a_fresh_state(tmp_path: Path) -> None:
    def disturb(engine: Engine, sweep: int) -> None:
        if sweep in (2, 5):
            engine.scheduler.recompute(0)
            engine.scheduler.recompute(2)

    _assert_same(_made("jamba", tmp_path), tmp_path, disturb, rows=4, sweep_tokens=40, batch_tokens=16)


def test_a_larger_job_after_a_smaller_one(tmp_path: Path) -> None:
    model = _made("falcon_h1", tmp_path)
    greedy = SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=0)
    with LLM(str(tmp_path), dtype="float32", page_bytes=3000, unchecked=True, **STREAMED) as llm:
        llm.generate({"prompt_token_ids": PROMPTS[2]}, greedy)
        found = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], greedy)
    expected = [_expected(model, prompt).argmax(-1).tolist() for prompt in PROMPTS]
    assert [out.outputs[0].token_ids for out in found] == expected


def test_an_aborted_row_leaves_no_state(tmp_path: Path) -> None:
    _made("lfm2", tmp_path)
    llm, engine = _engine(tmp_path)
    with llm:
        sampling = resolve(SamplingParams(max_tokens=TOKENS, ignore_eos=True), {})
        rows = [engine.add(str(i), prompt, sampling) for i, prompt in enumerate(PROMPTS[:2])]
        engine.sweep()
        one = engine.states.nbytes // 2
        assert one == llm.blueprint.footprint().state > 0
        engine.abort(rows[0])
        assert engine.states.nbytes == one


@pytest.mark.parametrize(("family", "reason"), REFUSED.items())
def test_refused_in_one_line(family: str, reason: str, tmp_path: Path) -> None:
    config = _REFUSED_CONFIGS[family]()
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=reason) as refused:
        LLM(str(tmp_path), random_weights=True, unchecked=True)
    assert "\n" not in str(refused.value)


def _decided(budget: int, **asked: Any) -> Placement:
    shape = Footprint([1000] * 4, frozenset(), 0, 1, 1, kv_block=10, block_tokens=16, state=5000, state_layer=500)
    ledger = Ledger({"cpu": budget, "disk": 1 << 30}, {"cpu": 0})
    return decide(shape, Job(64, 32, 32, 16), ledger, Asked(**asked), "cpu", 0)


def test_states_of_all_rows_in_flight_are_counted() -> None:
    assert _decided(10_000_000).policy.rows == 64
    tight = _decided(120_000)
    assert 1 < tight.policy.rows < 64
    assert tight.reserved["cpu"] + tight.kv["cpu"] <= 120_000
    assert tight.reserved["cpu"] >= 5000 * tight.policy.rows


def test_a_static_group_whose_states_do_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="32 rows keep 156 KiB beside their KV blocks on cpu"):
        _decided(120_000, batch_size=16, num_batches=2)
