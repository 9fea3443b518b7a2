"""What a model weighs, and what a budget would hold of it; from headers alone."""

from collections import Counter
from typing import Any

from penstock.engine.build import Blueprint
from penstock.errors import UserError
from penstock.llm import LLM
from penstock.plan.policy import TIERS, Tier
from penstock.plan.rule import decide
from penstock.plan.types import Asked, Job, Ledger, Placement

_PROMPTS, _PROMPT_TOKENS, _NEW_TOKENS = 256, 512, 128  # of the job that a budget is judged by


def describe(model: str, **flags: Any) -> dict[str, Any]:
    """A model's shape, its bytes per page and per token, and what a budget holds; flags are keywords of ``LLM``.

    Bytes are integers. ``bytes``: weights as stored, shared ones once, in whole sectors. ``dtype.stored``: what most of
    them are. ``converted_bytes``: of them, what goes through the page cache first. ``holds``: what a run of ``prompts``
    prompts would place within ``budget_bytes``, or ``refusal`` where that is too small. Raises UserError for what can
    not be run.
    """
    with LLM(model, unchecked=True, on_event=lambda event: None, **flags) as llm:
        return {**shape(llm.blueprint), "holds": holds(llm.blueprint, llm.ledger(), llm.asked, llm.compute_tier)}


def shape(plan: Blueprint) -> dict[str, Any]:
    """What does not depend on a budget."""
    footprint, pages = plan.footprint(), plan.layout.pages
    kinds: Counter[str] = Counter()
    for piece in (piece for page in pages for piece in page.slices):
        kinds[piece.dtype] += piece.nbytes
    return {
        "name": plan.source.name,
        "family": plan.config.model_type,
        "parameters": sum(parameter.numel() for parameter in plan.skeleton.parameters()),
        "bytes": sum(footprint.pages) + footprint.core,
        "layers": int(plan.config.num_hidden_layers),
        "pages": len(pages),
        "page_bytes_max": max(footprint.pages, default=0),
        "core_bytes": footprint.core,
        "converted_bytes": sum(page.nbytes for page in pages if page.extents is None),
        "kv_bytes_per_token": footprint.kv_block // footprint.block_tokens,
        "open_kv_bytes_per_row": footprint.open_block,
        "state_bytes_per_row": footprint.state,
        "context": plan.context,
        "dtype": {
            "stored": kinds.most_common(1)[0][0] if kinds else _name(plan.precision.stored),
            "compute": _name(plan.precision.compute),
            "kv": plan.kv.packed.name if plan.kv.packed else _name(plan.precision.kv),
        },
    }


def holds(plan: Blueprint, ledger: Ledger, asked: Asked, compute: Tier) -> dict[str, Any]:
    """What the rule would do with a budget and a job of many rows; less than the process itself takes is refused."""
    footprint = plan.footprint()
    new = min(_NEW_TOKENS, max(1, (plan.context or _NEW_TOKENS * 5) // 5))
    prompt = min(_PROMPT_TOKENS, (plan.context or _PROMPT_TOKENS + new) - new)
    job = Job(_PROMPTS, prompt + new, prompt + new, prompt)
    facts: dict[str, Any] = {
        "budget_bytes": {tier: ledger.budget[tier] for tier in TIERS if ledger.budget[tier]},
        "prompts": _PROMPTS,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "row_tokens": prompt + new,
    }
    try:
        placed = decide(footprint, job, ledger, asked, compute, 0)
    except UserError as error:
        return {**facts, "refusal": str(error)}
    row_bytes = (-(-job.mean_tokens // footprint.block_tokens) + 1) * footprint.kv_block
    rows = min(placed.policy.rows, placed.kv[compute] // row_bytes) if row_bytes else placed.policy.rows
    return {**facts, "rows": rows, "weights_bytes": _by_tier(plan, placed, compute)}


def _by_tier(plan: Blueprint, placed: Placement, compute: Tier) -> dict[Tier, int]:
    footprint = plan.footprint()
    resting: dict[Tier, int] = dict.fromkeys(TIERS, 0)
    for nbytes, home in zip(footprint.pages, placed.homes, strict=True):
        resting[home] += nbytes
    resting[compute] += footprint.core
    return {tier: nbytes for tier, nbytes in resting.items() if nbytes}


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
