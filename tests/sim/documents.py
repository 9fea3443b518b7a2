"""A small scenario's keys to build others from."""

from typing import Any


def document(**changes: Any) -> dict[str, Any]:
    """Two layers, eight prefill tokens, twelve to decode, HBM for weights and ten items; None leaves a key out."""
    keys = {
        "name": "small",
        "layers": 2,
        "w_attn_bytes": 40,
        "w_mlp_bytes": 80,
        "kv_bytes": 10,
        "prefill_tokens": 8,
        "decode_tokens": 12,
        "hbm_capacity_bytes": 345,
        "bandwidths": {"hbm": 1000, "ext_read": 200, "ext_write": 200, "ext_internal": 400},
        "skip_levels": [0.5],
        "trace": {"sinks": 1, "recent": 2, "overlap": 0.6},
    }
    return {key: value for key, value in (keys | changes).items() if value is not None}
