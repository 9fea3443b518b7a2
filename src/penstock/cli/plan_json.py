"""A plan as one JSON value."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from penstock.plan.paging import Paged, Way
from penstock.plan.plan import Plan, Prediction


def record(plan: Plan) -> dict[str, Any]:
    """Everything that a plan says; numbers that are not finite are null. Bytes, seconds and tokens per second."""
    return _finite(
        {
            "model": plan.model,
            "machine": plan.machine,
            "job": plan.job,
            "fits": plan.fits,
            "runs": plan.placement is not None,
            "why_not": plan.why_not,
            "short": {tier: use.short for tier, use in plan.memory.items() if use.short},
            "policy": asdict(plan.policy),
            "memory": {
                tier: {**asdict(use), "needed": use.needed, "free": use.free, "short": use.short}
                for tier, use in plan.memory.items()
            },
            "predicted": _predicted(plan.predicted),
            "binding_lane": plan.predicted.binding_lane,
            "duals": dict(plan.duals),
            "what_if": [asdict(gain) for gain in plan.gains],
            "runners_up": [asdict(other) for other in plan.runners_up],
            "curve": [{"rows": rows, "tok_s": tok_s} for rows, tok_s in plan.curve],
            "notes": list(plan.notes),
        }
    )


def paging_record(model: Paged, ways: Sequence[Way], context: int) -> dict[str, Any]:
    """The comparison of ways to move layers."""
    return _finite(
        {
            "context": context,
            "layers": model.layers,
            "layer_bytes": model.layer_bytes,
            "kv_bytes_per_layer_and_row": model.row_bytes,
            "fast": model.fast,
            "slow": model.slow,
            "ways": [
                {
                    "name": way.name,
                    "rows": way.rows,
                    "memory": dict(way.memory),
                    "fits": way.fits,
                    "seconds_per_token": way.token_s,
                    "tok_s": way.tok_s,
                    "slowdown": way.slowdown,
                    "seconds_per_token_moved_twice": way.first_s,
                    "break_even_rows": way.break_even_rows,
                    "remark": way.remark,
                }
                for way in ways
            ],
        }
    )


def _predicted(predicted: Prediction) -> dict[str, Any]:
    rates = {name: getattr(predicted, name) for name in ("total_tok_s", "prefill_tok_s", "decode_tok_s")}
    return asdict(predicted) | rates


def _finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with what JSON has no number for as None, however deep."""
    return {name: _value(one) for name, one in record.items()}


def _value(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return _finite(value)
    return [_value(one) for one in value] if isinstance(value, list | tuple) else value
