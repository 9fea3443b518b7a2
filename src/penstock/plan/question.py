"""What a plan is asked for: a job, a machine, budgets and what a person fixed. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from penstock.plan.policy import TIERS, Tier
from penstock.plan.types import Asked, Job, Length

Objective = Literal["throughput", "latency"]
CostModel = Literal["penstock", "flexgen"]

_SWEEP_TOKENS = 1024  # of a sweep, about, where nobody said how many


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A job on a machine; None leaves the choice to the planner.

    prompt_len, gen_len, num_prompts: of a job whose prompts are alike. lengths: (prompt tokens, tokens to generate) per
    request instead. prompts: their token ids too, where prompts begin alike; rows then share what is computed of these.
    objective: tokens per second of the job, or the time from a row's first prompt token to its last token; latency_s
    bounds that time and token_s the time that a row waits for each token, and the most tokens per second within them is
    wanted. no_disk: nothing rests on disk. machine: a preset's name or a machine file, this host where None.
    gpu_memory, cpu_memory, disk_memory: budgets in bytes. asked: what of the policy is fixed.
    weight_bits, lm_head_bits, kv_bits: of what is stored and moved. The rest mirrors keywords of ``LLM``.
    """

    prompt_len: int = 512
    gen_len: int = 128
    num_prompts: int = 1000
    lengths: Sequence[tuple[int, int]] | None = None
    prompts: Sequence[Sequence[int]] | None = None
    objective: Objective = "throughput"
    latency_s: float | None = None
    token_s: float | None = None
    no_disk: bool = False
    machine: str | None = None
    cost_model: CostModel = "penstock"
    gpu_memory: int | None = None
    cpu_memory: int | None = None
    disk_memory: int | None = None
    asked: Asked = field(default_factory=Asked)
    weight_bits: int | None = None
    lm_head_bits: int | None = None
    kv_bits: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    offload_dir: str | None = None
    trust_remote_code: bool = False

    @property
    def requests(self) -> Sequence[tuple[int, int]]:
        """(prompt tokens, tokens to generate) of every request."""
        return self.lengths if self.lengths is not None else [(self.prompt_len, self.gen_len)] * self.num_prompts

    def rows_of_job(self, sharing: bool = True) -> list[Length]:
        """Every request as a row. sharing: rows take over what others computed of a prompt that begins alike."""
        unknown: Sequence[Sequence[int] | None] = [None] * len(self.requests)
        ids = self.prompts if self.prompts is not None and sharing and self.asked.batch_size is None else unknown
        return [Length(prompt, new, known) for (prompt, new), known in zip(self.requests, ids, strict=True)]

    @property
    def row_sweeps(self) -> int:
        """Sweeps from the first prompt token of the longest row to its last token."""
        step = self.asked.sweep_tokens or _SWEEP_TOKENS
        return max(-(-prompt // step) - 1 + new for prompt, new in self.requests)

    @property
    def most_sweep_s(self) -> float | None:
        """What a sweep may take at most, None where nothing bounds it."""
        of_row = None if self.latency_s is None else self.latency_s / self.row_sweeps
        return min((bound for bound in (of_row, self.token_s) if bound is not None), default=None)

    @property
    def is_given(self) -> bool:
        """Whether weights, KV and batch shape are all fixed, so that there is nothing to search."""
        return self.asked.is_given

    @property
    def has_wishes(self) -> bool:
        """Whether any of the policy is fixed."""
        beside = (self.weight_bits, self.lm_head_bits, self.kv_bits)
        return self.asked != Asked() or any(wish is not None for wish in beside)

    @property
    def job(self) -> Job:
        """The job as the placement rule counts it."""
        totals = [prompt + new for prompt, new in self.requests]
        mean = -(-sum(totals) // len(totals))
        return Job(len(totals), mean, max(totals), max(prompt for prompt, _ in self.requests))

    @property
    def budgets(self) -> Mapping[Tier, int | None]:
        """Bytes allowed per tier, None where what is free holds."""
        given = {"gpu": self.gpu_memory, "cpu": self.cpu_memory, "disk": self.disk_memory}
        return {tier: given[tier] for tier in TIERS}
