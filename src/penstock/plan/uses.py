"""What a placement takes on each tier, as the rule counted it."""

from collections.abc import Mapping
from dataclasses import replace

from penstock.plan.case import Case
from penstock.plan.grid import cut_of
from penstock.plan.plan import Use
from penstock.plan.policy import TIERS, Tier
from penstock.plan.sizes import Sizes
from penstock.plan.types import Placement


def memory(case: Case, placement: Placement) -> Mapping[Tier, Use]:
    """What a placement takes on each tier that there is.

    Weights on disk take nothing there: they are read from the checkpoint where it lies, or from a page cache, which
    the ledger counts as taken.
    """
    policy, ledger = placement.policy, case.ledger
    cut = cut_of(policy)
    sizes = Sizes(case.shape.footprint, case.job, ledger, replace(case.asked, kv=policy.kv), case.compute)
    suspended, used = sizes.suspended(cut), {}
    for tier in TIERS:
        if tier not in ledger.budget or (tier == "gpu" and case.compute != "gpu"):
            continue
        pages = zip(case.shape.pages, placement.homes, strict=True)
        weights = sum(page.nbytes for page, home in pages if home == tier)
        reserved = placement.reserved.get(tier, 0)
        if tier == case.compute:
            buffers = max(0, reserved - suspended)
        else:
            kept = policy.rows * sizes.model.kept if tier == sizes.kv_tier else 0
            buffers = min(reserved, 2 * sizes.page + sizes.attending(cut, tier) + kept) if tier == "cpu" else 0
        used[tier] = Use(
            budget=ledger.budget[tier],
            taken=ledger.taken.get(tier, 0),
            weights=weights,
            kv=placement.kv.get(tier, 0),
            activations=reserved - buffers,
            buffers=buffers,
            in_place=weights if tier == "disk" else 0,
        )
    return used
