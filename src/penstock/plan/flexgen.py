"""FlexGen's own cost model, kept as a baseline beside Penstock's (Sheng et al., ICML 2023, section 4 and appendix A.3).

Known defects, kept on purpose:
rates are constants, those of many tokens in prefill and of DECODE_ROWS in decode, whatever the batch; 4-bit bytes are a
quarter, without scales; unpacking is free; where attention runs is given, not chosen per phase; what decode writes back
from the gpu to the cpu, embeddings, the LM head, sampling and the overhead of calls are left out; the job is one full
group of rows with prompts of one length, all of which run to the end; prefill and decode never share a sweep; fractions
are not rounded to anything that can be moved.
One thing differs from the released program: the working set is the largest of its operators, not their sum, because the
sum refuses policies that the paper measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from penstock.errors import UserError
from penstock.machine.machine import Machine
from penstock.plan.flexgen_group import FlexGenPolicy, Group, OptShape, Phase
from penstock.plan.linear import price, solve, used_bytes
from penstock.plan.policy import TIERS, Shares, Tier

_LANES = ("cpu→gpu", "gpu→cpu", "disk→cpu", "cpu→disk", "compute")


@dataclass(frozen=True, slots=True)
class FlexGenPrediction:
    """What the equations say of one group of rows.

    prefill_lanes, decode_lanes: busy seconds of each lane for one layer, and in decode for one token of every row.
    memory: bytes per tier at the peak; working_bytes: of the gpu's, the largest operator's. short: bytes that tiers are
    too small by.
    """

    prefill_lanes: Mapping[str, float]
    decode_lanes: Mapping[str, float]
    seconds: float
    tok_s: float
    memory: Mapping[Tier, int]
    working_bytes: int
    short: Mapping[Tier, int]

    @property
    def prefill_layer_s(self) -> float:
        """T_pre: of the busiest lane, for one layer."""
        return max(self.prefill_lanes.values())

    @property
    def decode_layer_s(self) -> float:
        """T_gen: of the busiest lane, for one layer and one token of every row."""
        return max(self.decode_lanes.values())

    @property
    def binding_lanes(self) -> Mapping[Phase, str]:
        """The busiest lane of each phase."""
        return {
            "prefill": max(self.prefill_lanes, key=self.prefill_lanes.__getitem__),
            "decode": max(self.decode_lanes, key=self.decode_lanes.__getitem__),
        }


def predict_flexgen(
    shape: OptShape, machine: Machine, policy: FlexGenPolicy, prompt: int, generate: int
) -> FlexGenPrediction:
    """What FlexGen's equations say of one group of rows: T = T_pre·l + T_gen·(n-1)·l, whether the policy fits or not.

    prompt, generate: tokens of each row. Raises UserError where the machine has no gpu, or lacks a tier that the policy
    names.
    """
    group = Group(shape, machine, policy, prompt, generate)
    program = group.program()
    given = {"weights": policy.weights, "kv": policy.kv, "activations": policy.activations}
    for name, shares in given.items():
        for tier in TIERS:
            if shares.of(tier) and tier not in machine.memory:
                raise UserError(
                    f"{shares.of(tier):.0%} of the {name} are on {tier}, which {machine.name} does not have"
                )
    placed = {name: {tier: shares.of(tier) for tier in TIERS} for name, shares in given.items()}
    seconds, lanes, short = price(program, placed)
    memory = {tier: round(nbytes) for tier, nbytes in used_bytes(program, placed).items() if tier in machine.memory}
    memory["gpu"] += group.working_bytes
    return FlexGenPrediction(
        prefill_lanes={lane: lanes[f"prefill {lane}"] for lane in _LANES},
        decode_lanes={lane: lanes[f"decode {lane}"] for lane in _LANES},
        seconds=seconds,
        tok_s=policy.rows * generate / seconds,
        memory=memory,
        working_bytes=group.working_bytes,
        short=short,
    )


def best_flexgen(
    shape: OptShape,
    machine: Machine,
    batch_size: int,
    num_batches: int,
    prompt: int,
    generate: int,
    *,
    cpu_attention: bool | None = None,
    weight_bits: int | None = None,
    kv_bits: int | None = None,
) -> tuple[FlexGenPolicy, FlexGenPrediction]:
    """The placement that FlexGen's linear program finds for a batch size and a number of batches.

    cpu_attention: both are tried where it is None. Raises linear.Infeasible where nothing fits.
    """
    nowhere = Shares()
    asked = FlexGenPolicy(nowhere, nowhere, nowhere, batch_size, num_batches, True, weight_bits, kv_bits)
    found: list[tuple[FlexGenPolicy, FlexGenPrediction]] = []
    for on_cpu in (True, False) if cpu_attention is None else (cpu_attention,):
        policy = replace(asked, cpu_attention=on_cpu)
        placed = solve(Group(shape, machine, policy, prompt, generate).program()).shares
        weights, kv, activations = (Shares.from_mapping(placed[name]) for name in ("weights", "kv", "activations"))
        policy = replace(policy, weights=weights, kv=kv, activations=activations)
        found.append((policy, predict_flexgen(shape, machine, policy, prompt, generate)))
    return min(found, key=lambda pair: pair[1].seconds)
