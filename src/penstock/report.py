"""The account of a run: what ``LLM.last_run`` and the summary are made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.engine.engine import Engine, SweepReport
from penstock.machine.limits import peak_resident_bytes
from penstock.memory.clock import Clock, Lane, Reading, Summary
from penstock.plan.plan import Prediction
from penstock.plan.policy import TIERS, Tier
from penstock.plan.types import Placement

_LINKS: Mapping[Lane, str] = {
    "disk→cpu": "disk_to_cpu",
    "cpu→gpu": "cpu_to_gpu",
    "gpu→cpu": "gpu_to_cpu",
    "cpu→disk": "cpu_to_disk",
}


@dataclass(slots=True)
class Account:
    """Adds up sweeps. prefill seconds are each sweep's share by tokens of what prefill computed in it."""

    started: Reading
    tokens_in: int = 0
    prompts: int = 0
    tokens_out: int = 0
    shared_tokens: int = 0
    sweeps: int = 0
    rows: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    kv_peak: dict[Tier, int] = field(default_factory=lambda: dict.fromkeys(TIERS, 0))
    activations_peak: dict[Tier, int] = field(default_factory=lambda: dict.fromkeys(TIERS, 0))

    def add(self, sweep: SweepReport, engine: Engine) -> None:
        """Count one sweep."""
        self.sweeps += 1
        self.rows += sweep.rows
        self.tokens_out += len(sweep.drawn)
        self.prefill_tokens += sweep.prefill_tokens
        self.decode_tokens += sweep.decode_tokens
        tokens = sweep.prefill_tokens + sweep.decode_tokens
        part = sweep.prefill_tokens / tokens if tokens else 0.0
        self.prefill_s += sweep.seconds * part
        self.decode_s += sweep.seconds * (1 - part)
        kv = {tier: engine.scheduler.blocks_in_use(tier) for tier in TIERS}
        kv[engine.kv.device.compute_tier] += engine.states.nbytes
        if sum(kv.values()) > sum(self.kv_peak.values()):
            self.kv_peak = kv
        if sum(sweep.activations.values()) > sum(self.activations_peak.values()):
            self.activations_peak = {tier: sweep.activations.get(tier, 0) for tier in TIERS}

    def summary(
        self,
        clock: Clock,
        placement: Placement,
        weights: Mapping[Tier, int],
        peak: Mapping[Tier, int],
        budget: Mapping[Tier, int],
        predicted: Prediction | None = None,
    ) -> dict[str, Any]:
        """``LLM.last_run``.

        shared_tokens: of prompts, taken over from others and not computed. total_tok_s: generated tokens over all
        seconds. prefill_tok_s, decode_tok_s: tokens of each kind over its share of the sweeps' seconds. rows_mean: rows
        per sweep. lanes, waits: share of the seconds in which a lane was busy, and in which compute waited for it.
        links: bytes and busy seconds. placed_bytes: weights by home; KV with recurrent state, and activations, when
        most was held. peak_bytes: ``peak``; of cpu, of the whole process since it began. budget_bytes: ``budget``.
        predicted: the same of seconds, rates, rows and lanes as they were planned, None where nothing was measured.
        """
        seen: Summary = clock.summary(self.started)
        seconds = seen["seconds"]
        return {
            "prompts": self.prompts,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "shared_tokens": self.shared_tokens,
            "seconds": seconds,
            "total_tok_s": self.tokens_out / seconds if seconds else 0.0,
            "prefill_tok_s": self.prefill_tokens / self.prefill_s if self.prefill_s else 0.0,
            "decode_tok_s": self.decode_tokens / self.decode_s if self.decode_s else 0.0,
            "rows_mean": self.rows / self.sweeps if self.sweeps else 0.0,
            "sweeps": self.sweeps,
            "lanes": {lane: use["share"] for lane, use in seen["lanes"].items() if use["seconds"]},
            "waits": {lane: wait["share"] for lane, wait in seen["waits"].items() if wait["seconds"]},
            "links": {
                name: {"bytes": seen["lanes"][lane]["bytes"], "seconds": seen["lanes"][lane]["seconds"]}
                for lane, name in _LINKS.items()
            },
            "placed_bytes": {
                "weights": dict(weights),
                "kv": dict(self.kv_peak),
                "activations": dict(self.activations_peak),
            },
            "peak_bytes": {**peak, "cpu": peak_resident_bytes()},
            "budget_bytes": dict(budget),
            "policy": {
                "rows": placement.policy.rows,
                "sweep_tokens": placement.policy.sweep_tokens,
                "batch_tokens": placement.policy.batch_tokens,
                "slots": placement.policy.slots,
                "admission": placement.policy.admission,
            },
            "predicted": None if predicted is None else _record(predicted),
        }


def _record(predicted: Prediction) -> dict[str, Any]:
    return {
        "seconds": predicted.seconds,
        "total_tok_s": predicted.total_tok_s,
        "prefill_tok_s": predicted.prefill_tok_s,
        "decode_tok_s": predicted.decode_tok_s,
        "rows_mean": predicted.rows_mean,
        "sweeps": predicted.sweeps,
        "lanes": {lane: busy / predicted.seconds for lane, busy in predicted.lanes.items()},
    }
