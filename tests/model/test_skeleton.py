"""Models that transformers cannot build."""

import pytest
import torch
from transformers import LlamaConfig

from penstock.errors import UserError
from penstock.model.skeleton import build_skeleton


def test_a_size_that_the_model_divides_by_is_one_line():
    config = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
    config.num_key_value_heads = 0
    with pytest.raises(UserError, match=r"^a size in its config is 0, which llama models cannot be built with"):
        build_skeleton(config, torch.float32)
