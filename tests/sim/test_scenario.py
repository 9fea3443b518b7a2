"""What a scenario made in Python may be."""

from dataclasses import replace
from typing import Any

import pytest

from penstock.errors import UserError
from penstock.sim.memories import Memories
from penstock.sim.scenario import Scenario

MEMORIES = Memories(1000, 3000, 1000, 1000, 2000)
SCENARIO = Scenario("case", MEMORIES, 3, 50, 101, 7, 8, 2)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layers": 0}, "layers is 0: give a whole number from 1 to"),
        ({"decode_tokens": 0}, "decode_tokens is 0: give a whole number from 1"),
        ({"prefill_tokens": -1}, "prefill_tokens is -1: give a whole number from 0"),
        ({"kv_bytes": 1.5}, "kv_bytes is 1.5: give a whole number"),
        ({"weight_capacity_bytes": -1}, "weight_capacity_bytes is -1"),
        ({"compute_s": float("nan")}, "compute_s is nan: give zero or more seconds"),
        ({"fixed_s": -1.0}, "fixed_s is -1.0: give zero or more seconds"),
        ({"prefill_tokens": 10**12}, "KV comes to 3,000,000,000,006 items; at most 2,147,483,648 are simulated"),
        ({"attn_bytes": 2**52}, r"a step may move 1\.35e\+16 bytes; up to 9\.01e\+15 are exact: scale the sizes down"),
    ],
)
def test_numbers_that_cannot_be_are_refused_in_one_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        replace(SCENARIO, **changes)


@pytest.mark.parametrize("field", ["hbm_capacity_bytes", "hbm_bytes_per_s", "ext_read_bytes_per_s"])
@pytest.mark.parametrize("value", [0, -5, 4.9e12, 2**53])
def test_memories_are_whole_and_above_zero(field: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{field} is .*: give a whole number from 1 to 9,007,199,254,740,991"):
        replace(MEMORIES, **{field: value})
