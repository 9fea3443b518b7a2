"""A policy that a person gave, priced as it stands: also one that overflows a tier or that no engine runs yet."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from penstock.plan.case import Case
from penstock.plan.placement import place_within
from penstock.plan.policy import TIERS, Policy, Shares, Tier
from penstock.plan.sizes import Cut, Sizes
from penstock.plan.types import Placement


def given_placement(case: Case) -> Placement:
    """A placement by the case's own wishes, whatever room there is; what was left open is on the compute tier if it
    fits there, or else as far below as it must."""
    asked, compute = case.asked, case.compute
    here = Shares.from_mapping({compute: 1.0})
    newest = asked.kv_tier(compute)
    static = asked.batch_size is not None
    calls = (asked.batch_size or 0) * case.job.longest_prompt
    batch = asked.batch_tokens or calls or case.shape.footprint.call_tokens
    kv = asked.kv or Shares.from_mapping({newest: 1.0})
    sizes = Sizes(case.shape.footprint, case.job, case.ledger, replace(asked, kv=kv), compute)
    rows = asked.rows or (asked.batch_size or 0) * (asked.num_batches or 0) or _rows_beside(case, sizes, batch, kv)
    cut = Cut(asked.slots or 2, batch, rows, asked.sweep_tokens or max(batch, rows))
    kv_bytes = max(rows * _row_bytes(case, sizes), sizes.row_bytes(case.job.longest_tokens))
    homes = _homes(case, sizes, sizes.fixed(cut) + int(kv.of(compute) * kv_bytes))
    if static and asked.slots is None:
        cut = replace(cut, slots=_layer_slots(case, homes))
    fixed = _static_fixed(case, sizes, cut) if static else sizes.fixed(cut)
    total = sum(case.shape.footprint.pages) or 1
    by_tier = {
        t: sum(n for n, h in zip(case.shape.footprint.pages, homes, strict=True) if h == t) / total for t in TIERS
    }
    policy = Policy(
        weights=asked.weights or Shares.from_mapping(by_tier),
        kv=kv,
        activations=asked.activations or here,
        rows=rows,
        sweep_tokens=cut.sweep,
        batch_tokens=batch,
        slots=cut.slots,
        admission="static" if static else "continuous",
        batch_size=asked.batch_size,
        num_batches=asked.num_batches,
        attention="cpu" if sizes.beside else None,
        cpu_layers=asked.cpu_layers or 0,
        cpu_tokens=sizes.cpu_tokens,
    )
    held = {tier: int(kv.of(tier) * kv_bytes) for tier in TIERS if kv.of(tier) > 0}
    reserved = {tier: _reserved_below(case, sizes, cut, tier) for tier in TIERS[TIERS.index(compute) + 1 :]}
    reserved[compute] = fixed
    reserved[newest] += rows * case.shape.footprint.kept
    return Placement(case.extended(policy), homes, held, sizes.staging(), reserved)


def _rows_beside(case: Case, sizes: Sizes, batch: int, kv: Shares) -> int:
    """Rows, where nobody said how many: those whose KV each tier holds beside the pages that were put there."""
    held, row = case.job.prompts, _row_bytes(case, sizes)
    for tier in TIERS:
        room = case.ledger.free(tier) - (sizes.pages_asked(tier) if tier != "disk" else 0)
        each = kv.of(tier) * row
        if tier == case.compute:
            room -= sizes.fixed(Cut(case.asked.slots or 2, batch, 1, batch))
        if tier == sizes.kv_tier:
            each += case.shape.footprint.kept
        if each:
            held = min(held, int(room / each))
    return max(1, held)


def _row_bytes(case: Case, sizes: Sizes) -> float:
    """KV of a row of mean length, as it is stored."""
    return sizes.row_bytes(case.job.mean_tokens)


def _reserved_below(case: Case, sizes: Sizes, cut: Cut, tier: Tier) -> int:
    """Bytes of a slower tier besides KV and pages: activations, in FlexGen's form only residual streams of prompts."""
    if case.asked.batch_size is not None:
        share = case.asked.activations.of(tier) if case.asked.activations else 0.0
        parked = int(share * cut.rows * case.job.longest_prompt * case.shape.hidden_bytes)
    else:
        parked = sizes.parked(cut, tier)
    return parked + sizes.attending(cut, tier) + (2 * sizes.page if tier == "cpu" else 0)


def _layer_slots(case: Case, homes: Sequence[Tier]) -> int:
    """Slots that what streams of a layer takes: FlexGen holds half a layer, attention or MLP, and loads the other."""
    streamed = Counter(
        page.layer
        for page, home in zip(case.shape.pages, homes, strict=True)
        if home != case.compute and page.layer is not None
    )
    return max(2, max(streamed.values(), default=0))


def _static_fixed(case: Case, sizes: Sizes, cut: Cut) -> int:
    """Bytes of the compute tier before KV and resident pages, where a micro-batch's prompts are one call.

    Of such a call no more than one operator's tensors are there at a time, as FlexGen counts them: those of a product,
    or queries, outputs and all scores of attention (FlexGen, appendix A.3).
    """
    shape, job = case.shape, case.job
    item = 2  # bytes of a score in half precision
    attention_bytes = 2 * shape.hidden_bytes + item * shape.heads * job.longest_prompt
    logits = min(cut.rows, case.asked.batch_size or cut.rows) * shape.footprint.logit_bytes
    working = cut.batch * max(shape.operator_bytes, attention_bytes) + logits
    ring = min(cut.slots, len(sizes.streamable)) * sizes.page
    return shape.footprint.core + working + sizes.suspended(cut) + ring + sizes.staged(case.compute)


def _homes(case: Case, sizes: Sizes, before: int) -> tuple[Tier, ...]:
    """The tier of each page: as asked, or the fastest filled first with what is left of it."""
    if (asked := sizes.homes_asked()) is not None:
        return tuple(asked)
    pages, beside = case.shape.footprint.pages, sizes.beside_pages
    room: dict[Tier, int] = {tier: max(0, case.ledger.free(tier)) for tier in ("gpu", "cpu")}
    room[case.compute] = max(0, case.ledger.free(case.compute) - before)
    room["cpu"] = max(0, room["cpu"] - sizes.beside_bytes)
    last: Tier = "cpu" if case.no_disk else "disk"  # it may be short of room, which is told
    others = [nbytes for i, nbytes in enumerate(pages) if i not in beside]
    placed = iter(place_within(others, {**room, last: sum(others)}))
    return tuple("cpu" if i in beside else next(placed) for i in range(len(pages)))
