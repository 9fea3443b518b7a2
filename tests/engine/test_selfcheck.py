"""The self-check lets exact models pass and refuses what differs, by name, once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from penstock.engine import masks, rotary, selfcheck
from penstock.engine.anatomy import dissect
from penstock.errors import UserError
from penstock.model.skeleton import build_skeleton
from penstock.model.source import Source

WIDTHS: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "vocab_size": 300}
WIDTHS |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def source(config: Any) -> Source:
    return Source("a model", "random", Path("."), config, None, None)


def longrope() -> Any:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0 + i for i in range(8)]}
    rope |= {"rope_theta": 10000.0, "original_max_position_embeddings": 1024}
    return hf.Phi3Config(
        max_position_embeddings=4096, original_max_position_embeddings=1024, rope_parameters=rope, **WIDTHS
    )


@pytest.mark.parametrize("config", [hf.LlamaConfig(**WIDTHS), longrope()], ids=["llama", "longrope"])
def test_an_exact_model_passes(config: Any) -> None:
    state = torch.get_rng_state()
    verdict = selfcheck.check(source(config))
    assert verdict.exact, verdict.reason
    assert verdict.difference is not None and verdict.difference < 1e-4
    assert torch.equal(state, torch.get_rng_state())


def test_a_window_that_is_ignored_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = hf.MistralConfig(sliding_window=512, max_position_embeddings=4096, **WIDTHS)
    assert selfcheck.check(source(config)).exact
    monkeypatch.setattr(masks.Predicate, "lowest", lambda self, batch: None)
    verdict = selfcheck.check(source(config))
    assert not verdict.exact
    assert "differ" in str(verdict.reason)


def test_rotary_tables_of_the_whole_call_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotary, "take_by_span", lambda model: None)
    assert not selfcheck.check(source(longrope())).exact


def test_a_family_outside_the_attention_interface_is_refused() -> None:
    verdict = selfcheck.check(source(hf.BloomConfig(hidden_size=64, n_head=4, n_layer=2, vocab_size=300)))
    assert not verdict.exact


def test_a_verdict_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path))
    made: list[str] = []

    def check(source: Source, **_: Any) -> selfcheck.Verdict:
        made.append(source.name)
        return selfcheck.Verdict(False, "it is only a test", 0.1)

    monkeypatch.setattr(selfcheck, "check", check)
    asked, told = source(hf.LlamaConfig(**WIDTHS)), []
    for _ in range(2):
        with pytest.raises(UserError, match=r"^llama models are refused: it is only a test \(--unchecked .*\)$"):
            selfcheck.require_exact(asked, trust_remote_code=False, first=lambda: told.append(1))
    assert (len(made), len(told)) == (1, 1)
    other = replace(asked, config=hf.LlamaConfig(rope_theta=5e5, **WIDTHS))
    with pytest.raises(UserError):
        selfcheck.require_exact(other, trust_remote_code=False, first=lambda: told.append(1))
    assert len(made) == 2


def test_a_broken_memory_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path))
    monkeypatch.setattr(selfcheck, "check", lambda source, **_: selfcheck.Verdict(True, None, 0.1, 1e-6))
    asked = source(hf.LlamaConfig(**WIDTHS))
    selfcheck.require_exact(asked, trust_remote_code=False, first=lambda: None)
    (kept,) = (tmp_path / "checks").iterdir()
    kept.write_text("{")
    told: list[int] = []
    selfcheck.require_exact(asked, trust_remote_code=False, first=lambda: told.append(1))
    assert told == [1]
    assert "true" in kept.read_text()


def test_a_config_that_a_skeleton_was_made_from_is_still_checked_against_transformers():
    config = hf.Qwen3MoeConfig(
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=64, vocab_size=100, head_dim=16,
        intermediate_size=128, moe_intermediate_size=32, num_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    dissect(build_skeleton(config, torch.float32), config)
    assert selfcheck.check(source(config)).exact
