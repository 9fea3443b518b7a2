"""The simple honest rule: fill the fastest tier first, say what does not fit and what the least is. No torch.

Given how the work is cut, it fixes a Policy, the tier of every page and the KV bytes per tier; what of that is fastest
is for the search to find.
"""

from dataclasses import replace

from penstock.errors import UserError
from penstock.plan.placement import bytes_by_tier, place_within
from penstock.plan.policy import TIERS, Policy, Shares, Tier
from penstock.plan.sizes import Cut, Sizes, least_mib
from penstock.plan.types import Asked, Footprint, Job, Ledger, Placement
from penstock.units import format_bytes

_SWEEP_TOKENS = 1024  # at least, if memory allows
_MOST_ROWS = 4096


def decide(model: Footprint, job: Job, ledger: Ledger, asked: Asked, compute: Tier, hidden_tokens: int) -> Placement:
    """Fix everything about a run. hidden_tokens: T*, the tokens whose compute hides one sweep's page reads.

    Raises UserError, with the least that works, where a budget is too small.
    """
    slots = asked.slots or 3
    rows = asked.rows or (asked.batch_size or 0) * (asked.num_batches or 0) or min(job.prompts, _MOST_ROWS)
    rows = min(rows, job.prompts) if asked.batch_size is None else rows
    wanted_tokens = asked.sweep_tokens or max(_SWEEP_TOKENS, 2 * hidden_tokens)
    batch = asked.batch_tokens or min(wanted_tokens, model.call_tokens)
    sizes = Sizes(model, job, ledger, asked, compute)
    cut = Cut(slots, batch, rows, asked.sweep_tokens or max(batch, wanted_tokens))
    # Smaller calls before fewer rows: halve what activations take until everything needed fits.
    least_batch = asked.batch_tokens or min(batch, 32)
    while not sizes.fits(cut) and cut.batch > least_batch:
        # a sweep of more than two calls takes much from the calls and gives little more to the sweep
        if asked.sweep_tokens is None and cut.sweep > 2 * cut.batch:
            cut = replace(cut, sweep=cut.sweep // 2)
        else:
            cut = replace(cut, batch=max(least_batch, cut.batch // 2))
    while not sizes.fits(cut) and asked.sweep_tokens is None and cut.sweep > cut.batch:
        cut = replace(cut, sweep=max(cut.batch, cut.sweep // 2))
    while not sizes.fits(cut) and asked.slots is None and cut.slots > 2:
        cut = replace(cut, slots=cut.slots - 1)
    while not sizes.fits(cut) and asked.batch_size is None and cut.rows > 1:
        cut = replace(cut, rows=cut.rows // 2)
    if not sizes.fits(cut):
        fewest = 1 if asked.batch_size is None else rows
        cut = Cut(asked.slots or 2, least_batch, fewest, asked.sweep_tokens or least_batch)
        if sizes.needed(cut) > ledger.free(compute):
            raise UserError(sizes.refusal(cut))
        # it is the cpu beside the gpu that is short, which is told where it is filled
    return place(sizes, cut)


def place(sizes: Sizes, cut: Cut) -> Placement:
    """Room for KV first, as the rows want it; what is left holds resident pages."""
    tier = sizes.kv_tier
    resident_room = sizes.ledger.free(sizes.compute) - sizes.fixed(cut) - sizes.resident_asked()
    room = resident_room if tier == sizes.compute else _room_below(sizes, cut, tier, for_kv=True)
    rows = sizes.rows_held(room, cut.rows)
    cut = replace(cut, rows=rows)
    room -= rows * sizes.model.kept
    share = sizes.kv_share()
    full = rows * sizes.row_bytes(sizes.job.mean_tokens) + 2 * sizes.row_bytes(sizes.job.longest_tokens)
    tails = rows * 2 * sizes.model.kv_block + cut.batch * sizes.model.kv_block // sizes.model.block_tokens
    wanted = max(int(share * full) + (tails if share < 1 else 0), sizes.kv_least())
    kv: dict[Tier, int] = {tier: min(wanted, room)}
    rooms = {sizes.compute: resident_room, tier: room}
    for lower in _below(tier):
        part = sizes.asked.kv.of(lower) if sizes.asked.kv is not None else 0.0
        beyond = int(part * full) + sizes.row_bytes(sizes.job.longest_tokens) if part > 0 else 0
        rooms[lower] = _room_below(sizes, cut, lower, part > 0)
        if beyond:
            kv[lower] = min(beyond, rooms[lower])
    left = {t: nbytes - kv.get(t, 0) for t, nbytes in rooms.items()}
    homes = _homes(sizes, left[sizes.compute], left.get("cpu", 0))
    if asked_weights := sizes.asked.weights:
        shares = asked_weights
    else:
        held = bytes_by_tier(sizes.model.pages, homes)
        shares = Shares.from_mapping({tier: held[tier] / (sum(held.values()) or 1) for tier in TIERS})
    static = sizes.asked.batch_size is not None
    policy = Policy(
        weights=shares,
        kv=sizes.asked.kv or Shares.from_mapping({tier: 1.0}),
        activations=sizes.asked.activations or Shares.from_mapping({sizes.compute: 1.0}),
        rows=rows,
        sweep_tokens=max(cut.sweep, rows if static else 1),
        batch_tokens=cut.batch,
        slots=cut.slots,
        admission="static" if static else "continuous",
        batch_size=sizes.asked.batch_size,
        num_batches=sizes.asked.num_batches,
        attention="cpu" if sizes.beside else None,
        cpu_layers=sizes.asked.cpu_layers or 0,
        cpu_tokens=sizes.cpu_tokens,
    )
    reserved = {lower: sum(_held_below(sizes, cut, lower).values()) for lower in _below(sizes.compute)}
    reserved[sizes.compute] = sizes.fixed(cut)
    reserved[tier] += rows * sizes.model.kept
    return Placement(policy, tuple(homes), kv, sizes.staging(), reserved)


def _below(compute: Tier) -> tuple[Tier, ...]:
    """The tiers slower than the one that computes."""
    return TIERS[TIERS.index(compute) + 1 :]


def _room_below(sizes: Sizes, cut: Cut, tier: Tier, for_kv: bool) -> int:
    """Bytes of a slower tier for KV, and for pages that nobody put there.

    Raises UserError, with the least that works, where it does not hold what was put there, and a row of KV if any.
    """
    held = _held_below(sizes, cut, tier)
    if tier == "cpu":
        held["weights"] = sizes.pages_asked(tier)
    least_kv = sizes.row_bytes(sizes.job.longest_tokens) if for_kv else 0
    if tier == sizes.kv_tier:
        least_kv = sizes.row_least()
    needed, ledger = sum(held.values()) + least_kv, sizes.ledger
    if needed > ledger.free(tier) and needed > 0:
        parts = {"taken already": ledger.taken.get(tier, 0), **held, "KV of one row": least_kv}
        told = ", ".join(f"{what} {format_bytes(nbytes)}" for what, nbytes in parts.items() if nbytes)
        given = f"--{tier}-memory {format_bytes(ledger.budget.get(tier, 0))}"
        raise UserError(
            f"{given} is too small for what is placed there: {told}. "
            f"The least that works is {least_mib(ledger, tier, needed)}MiB."
        )
    return ledger.free(tier) - sum(held.values())


def _held_below(sizes: Sizes, cut: Cut, tier: Tier) -> dict[str, int]:
    """Bytes of a slower tier that neither KV nor pages may take."""
    held = {"activations": sizes.parked(cut, tier), "attention": sizes.attending(cut, tier)}
    return held | {"two page buffers": 2 * sizes.page} if tier == "cpu" else held


def _homes(sizes: Sizes, resident_room: int, host_room: int) -> list[Tier]:
    """The tier of every page: as asked, or the fastest tier filled first and the rest streamed.

    host_room: bytes for pages in host memory beside a gpu.
    """
    pages, beside = list(sizes.model.pages), sizes.beside_pages
    if (asked := sizes.homes_asked()) is not None:
        return asked
    budgets: dict[Tier, int] = {sizes.compute: max(0, resident_room)}
    if sizes.compute == "gpu":
        budgets["cpu"] = max(0, host_room)
    budgets["disk"] = sum(pages)
    # Embedding tables stream for nothing (their rows are read): let them rest in memory last.
    free = [i for i in range(len(pages)) if i not in beside and i not in sizes.model.tables]
    placed = place_within([pages[i] for i in free], budgets)
    held = bytes_by_tier([pages[i] for i in free], placed)
    homes: list[Tier] = ["cpu" if i in beside else "disk" for i in range(len(pages))]
    for i, home in zip(free, placed, strict=True):
        homes[i] = home
    for tier in dict.fromkeys((sizes.compute, "cpu")):
        left = budgets.get(tier, 0) - held[tier]
        for i in sorted(sizes.model.tables):
            if homes[i] == "disk" and pages[i] <= left:
                homes[i] = tier
                left -= pages[i]
    return homes
