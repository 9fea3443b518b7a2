"""Tiny configs keep what decides how a model behaves."""

from typing import Any

import pytest
import transformers as hf

from penstock.errors import UserError
from penstock.model.shrink import lengths, shrink


def accept(config: Any) -> None:
    """Every attempt is good."""


def test_widths_keep_their_proportions() -> None:
    config = hf.LlamaConfig(hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336)
    tiny = shrink(config, accept)
    assert tiny.num_attention_heads / tiny.num_key_value_heads == 4
    assert tiny.num_key_value_heads >= 2
    assert tiny.hidden_size == tiny.num_attention_heads * tiny.head_dim
    assert tiny.intermediate_size / tiny.hidden_size == 14336 / 4096
    assert tiny.num_hidden_layers == 2
    assert config.hidden_size == 4096


def test_each_layer_kind_is_kept() -> None:
    config = hf.Gemma3TextConfig(num_hidden_layers=26, sliding_window=512, max_position_embeddings=32768)
    tiny = shrink(config, accept)
    assert set(tiny.layer_types) == set(config.layer_types)
    assert len(tiny.layer_types) == tiny.num_hidden_layers == 2
    assert tiny.sliding_window < tiny.max_position_embeddings
    assert lengths(tiny) == [8, 64]


def test_dense_and_expert_layers_are_kept() -> None:
    tiny = shrink(hf.DeepseekV3Config(num_hidden_layers=61, first_k_dense_replace=3), accept)
    assert 0 < tiny.first_k_dense_replace < tiny.num_hidden_layers <= 4
    assert 4 <= tiny.n_routed_experts <= 8
    assert tiny.n_routed_experts % tiny.n_group == 0
    assert tiny.qk_head_dim == tiny.qk_nope_head_dim + tiny.qk_rope_head_dim


def test_a_list_of_layer_numbers_stays_within_the_layers() -> None:
    tiny = shrink(hf.Llama4TextConfig(num_hidden_layers=48, interleave_moe_layer_step=2), accept)
    assert tiny.num_hidden_layers <= 4
    assert set(tiny.no_rope_layers) == {0, 1}
    assert tiny.moe_layers and max(tiny.moe_layers) < tiny.num_hidden_layers


def test_layers_that_share_keys_keep_layers_to_share_with() -> None:
    config = hf.Gemma4TextConfig(num_hidden_layers=12, num_kv_shared_layers=6)
    tiny = shrink(config, accept)
    own = tiny.num_hidden_layers - tiny.num_kv_shared_layers
    assert set(tiny.layer_types[:own]) == set(tiny.layer_types[own:]) == set(config.layer_types)


def test_longrope_factors_match_the_new_head_width() -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [4.0 + i for i in range(48)]}
    config = hf.Phi3Config(
        hidden_size=3072, num_attention_heads=32, max_position_embeddings=131072, original_max_position_embeddings=4096,
        rope_parameters=rope | {"original_max_position_embeddings": 4096, "rope_theta": 10000.0},
    )  # fmt: skip
    tiny = shrink(config, accept)
    assert len(tiny.rope_parameters["long_factor"]) == tiny.hidden_size // tiny.num_attention_heads // 2
    assert tiny.rope_parameters["original_max_position_embeddings"] < tiny.max_position_embeddings == 64


def test_special_tokens_lie_inside_the_vocabulary() -> None:
    config = hf.LlamaConfig(vocab_size=128256, bos_token_id=128000, eos_token_id=[128001, 128009], pad_token_id=128004)
    tiny = shrink(config, accept)
    assert max([tiny.bos_token_id, tiny.pad_token_id, *tiny.eos_token_id]) < tiny.vocab_size == 128


def test_what_does_not_run_small_is_tried_wider_then_refused() -> None:
    widths = []

    def refuse(config: Any) -> None:
        widths.append((config.hidden_size, config.num_attention_heads))
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        shrink(hf.LlamaConfig(hidden_size=512, num_attention_heads=8), refuse)
    assert widths[0] < widths[-1] == (512, 8)
