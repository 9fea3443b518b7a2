"""A plan as one JSON value."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from penstock.plan.paging import Paged, Way
from penstock.plan.plan import Plan, Prediction

if TYPE_CHECKING:
    from penstock.plan.baseline import Baseline, Said


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
            **({"flexgen": _flexgen(plan.baseline)} if plan.baseline else {}),
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


def _flexgen(said: "Baseline") -> dict[str, Any]:
    """What FlexGen's model says: of the plan's policy, and of its own best placement of as many rows."""
    return {
        "of_policy": _said(said.of_policy),
        "best": _said(said.best) if said.best else None,
        "assumes": list(said.assumes),
    }


def _said(said: "Said") -> dict[str, Any]:
    predicted = said.predicted
    return {
        "policy": asdict(said.policy),
        "predicted": {
            "total_tok_s": predicted.tok_s,
            "seconds_per_group": predicted.seconds,
            "prefill_layer_s": predicted.prefill_layer_s,
            "decode_layer_s": predicted.decode_layer_s,
            "prefill_lanes": dict(predicted.prefill_lanes),
            "decode_lanes": dict(predicted.decode_lanes),
            "binding_lanes": dict(predicted.binding_lanes),
        },
        "memory": dict(predicted.memory),
        "fits": not predicted.short,
        "short": dict(predicted.short),
    }


def _finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with what JSON has no number for as None, however deep."""
    return {name: _value(one) for name, one in record.items()}


def _value(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return _finite(value)
    return [_value(one) for one in value] if isinstance(value, list | tuple) else value
