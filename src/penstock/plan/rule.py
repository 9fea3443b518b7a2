"""The simple honest rule: fill the fastest tier first, say what does not fit and what the least is. No torch.

It stands where a planner will come: it fixes a Policy, the tier of every page and the KV bytes per tier.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from penstock.errors import UserError
from penstock.plan.placement import place_within, spread
from penstock.plan.policy import TIERS, Policy, Shares, Tier
from penstock.plan.types import Asked, Footprint, Job, Ledger, Placement
from penstock.units import format_bytes

_SWEEP_TOKENS = 1024  # at least, if memory allows
_MOST_ROWS = 4096
_JITTER = 16 << 20  # what the interpreter and its libraries take differs by this from one start to the next
_HELD = 2  # a suspended call keeps less than 1/2 of what it takes when it runs (measured: 0.20 to 0.45)
_STATE_COPIES = 4  # of one layer's states in a call: gathered, updated in two steps, put back


def decide(model: Footprint, job: Job, ledger: Ledger, asked: Asked, compute: Tier, hidden_tokens: int) -> Placement:
    """Fix everything about a run. hidden_tokens: T*, the tokens whose compute hides one sweep's page reads.

    Raises UserError, with the least that works, where a budget is too small.
    """
    _check(asked, compute)
    slots = asked.slots or 3
    rows = asked.rows or (asked.batch_size or 0) * (asked.num_batches or 0) or min(job.prompts, _MOST_ROWS)
    rows = min(rows, job.prompts) if asked.batch_size is None else rows
    wanted_tokens = asked.sweep_tokens or max(_SWEEP_TOKENS, 2 * hidden_tokens)
    batch = asked.batch_tokens or min(wanted_tokens, model.call_tokens)
    sizes = _Sizes(model, job, ledger, asked, compute)
    cut = _Cut(slots, batch, rows, asked.sweep_tokens or max(batch, wanted_tokens))
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
        raise UserError(sizes.refusal(_Cut(asked.slots or 2, least_batch, 1, asked.sweep_tokens or least_batch)))
    return sizes.placement(cut)


def _check(asked: Asked, compute: Tier) -> None:
    for flag, shares in (("--weights", asked.weights), ("--kv", asked.kv), ("--activations", asked.activations)):
        if shares is not None and compute == "cpu" and shares.gpu > 0:
            raise UserError(f"{flag} puts {shares.gpu:.0%} on gpu, and there is no gpu here: use cpu and disk")
    if (asked.batch_size is None) != (asked.num_batches is None):
        raise UserError("--batch-size and --num-batches go together: b rows in each of B micro-batches")
    if asked.batch_size is not None and asked.rows is not None:
        raise UserError("--batch-size with --num-batches already fixes the rows: leave --rows out")


def _least_mib(nbytes: int) -> int:
    """A budget that works, in MiB: what is taken at the next start differs a little from now."""
    return -(-(nbytes + _JITTER) // (1 << 20))


@dataclass(frozen=True, slots=True)
class _Cut:
    """How the work is cut: page slots, tokens of a call, rows, tokens of a sweep."""

    slots: int
    batch: int
    rows: int
    sweep: int


class _Sizes:
    """Memory of a run as a function of how the work is cut."""

    def __init__(self, model: Footprint, job: Job, ledger: Ledger, asked: Asked, compute: Tier) -> None:
        self.model, self.job, self.ledger, self.asked, self.compute = model, job, ledger, asked, compute
        self.streamable = [n for i, n in enumerate(model.pages) if i not in model.tables]
        self.page = max(self.streamable, default=0)

    def row_bytes(self, tokens: int) -> int:
        """KV of one row of so many tokens, with the block that it grows into."""
        return (-(-tokens // self.model.block_tokens) + 1) * self.model.kv_block

    def fixed(self, cut: _Cut) -> int:
        """Bytes of the compute tier before KV and resident pages."""
        tokens = max(cut.batch, self.job.longest_prompt) if self.model.state else cut.batch
        logits = min(cut.rows, cut.batch) * self.model.logit_bytes
        workspace = max(tokens * self.model.call_bytes, logits + tokens * self.model.call_bytes // 4)
        workspace += _STATE_COPIES * min(cut.rows, cut.batch) * self.model.state_layer
        workspace += self.suspended(cut)
        ring = min(cut.slots, len(self.streamable)) * self.page
        return self.model.core + workspace + ring + 2 * self.staging()

    def suspended(self, cut: _Cut) -> int:
        """Bytes of activations on the compute tier of the calls that wait for a page while another one runs."""
        held, asked = self.model.call_bytes // _HELD, self.asked
        tokens = min(cut.sweep, self.job.prompts * self.job.longest_prompt)
        if asked.batch_size is not None:
            tokens = (asked.num_batches or 1) * max(cut.batch, asked.batch_size)
        waiting = max(0, tokens - cut.batch) * held
        if asked.activations is None or not waiting:
            return waiting
        passing = cut.batch * held if self.compute == "cpu" else 0  # to the disk and back, through one buffer
        return int(waiting * asked.activations.of(self.compute)) + passing

    def staging(self) -> int:
        """Bytes of one buffer for KV that comes from slower tiers: the longest row's blocks of one layer, at least."""
        if self.asked.kv is None or self.asked.kv.of(self.compute) >= 1:
            return 0
        blocks = -(-self.job.longest_tokens // self.model.block_tokens) + 1
        return max(blocks * self.model.staged_layer, 8 << 20)

    def resident_asked(self) -> int:
        """Bytes of pages that a person put on the compute tier."""
        shares = self.asked.weights
        if shares is None:
            return 0
        homes = spread(list(self.model.pages), shares)
        return sum(n for n, home in zip(self.model.pages, homes, strict=True) if home == self.compute)

    def kv_share(self) -> float:
        """The compute tier's part of KV."""
        return 1.0 if self.asked.kv is None else self.asked.kv.of(self.compute)

    def kv_least(self) -> int:
        """KV room without which the longest row cannot be run."""
        if self.kv_share() > 0:
            return self.row_bytes(self.job.longest_tokens)
        return self.row_bytes(self.job.longest_prompt)  # blocks are written here before they go home

    def row_least(self) -> int:
        """Room for KV and state without which no row can be run."""
        return self.kv_least() + self.model.state

    def rows_held(self, room: int, rows: int) -> int:
        """Of so many rows, those whose states fit beside their KV. UserError where a static group does not."""
        state, share = self.model.state, self.kv_share()
        if not state:
            return rows
        spare = room - self.kv_least()
        if self.asked.batch_size is not None:
            if rows * state > spare:
                raise UserError(
                    f"{rows} rows keep {format_bytes(rows * state)} of recurrent state on {self.compute}, where "
                    f"{format_bytes(max(spare, 0))} are left for it: make --batch-size or --num-batches smaller"
                )
            return rows
        return min(rows, max(1, spare // (state + int(share * self.row_bytes(self.job.mean_tokens)))))

    def needed(self, cut: _Cut) -> int:
        """Bytes of the compute tier without which nothing runs so."""
        return self.fixed(cut) + self.row_least() + self.resident_asked()

    def fits(self, cut: _Cut) -> bool:
        """Whether the budget of the compute tier allows that."""
        return self.needed(cut) <= self.ledger.free(self.compute)

    def refusal(self, least: _Cut) -> str:
        """Why the budget is too small even for the least cut, and the least budget that works."""
        taken, ring = self.ledger.taken.get(self.compute, 0), least.slots * self.page
        parts = [f"{least.slots} page slots {format_bytes(ring)}", f"one row {format_bytes(self.row_least())}"]
        if self.compute == "cpu":
            parts.insert(0, f"the interpreter takes {format_bytes(taken)}")
        if resident := self.resident_asked():
            parts.append(f"resident pages {format_bytes(resident)}")
        budget = format_bytes(self.ledger.budget.get(self.compute, 0))
        parts.append(f"a call {format_bytes(self.fixed(least) - ring)}")
        given = f"--{self.compute}-memory {budget} is too small for this model"
        return f"{given}: {', '.join(parts)}. The least that works is {_least_mib(taken + self.needed(least))}MiB."

    def placement(self, cut: _Cut) -> Placement:
        """Room for KV first, as the rows want it; what is left holds resident pages."""
        room = self.ledger.free(self.compute) - self.fixed(cut) - self.resident_asked()
        rows = self.rows_held(room, cut.rows)
        cut = replace(cut, rows=rows)
        room -= rows * self.model.state
        share = self.kv_share()
        full = rows * self.row_bytes(self.job.mean_tokens) + 2 * self.row_bytes(self.job.longest_tokens)
        tails = rows * 2 * self.model.kv_block + cut.batch * self.model.kv_block // self.model.block_tokens
        wanted = max(int(share * full) + (tails if share < 1 else 0), self.kv_least())
        kv: dict[Tier, int] = {self.compute: min(wanted, room)}
        for tier in TIERS:
            if tier != self.compute and self.asked.kv is not None and self.asked.kv.of(tier) > 0:
                needed = int(self.asked.kv.of(tier) * full) + self.row_bytes(self.job.longest_tokens)
                kv[tier] = min(needed, self._room_below(tier))
        homes = self._homes(room - kv[self.compute])
        self._check_host(homes, kv)
        if asked_weights := self.asked.weights:
            shares = asked_weights
        else:
            total = sum(self.model.pages) or 1
            shares = Shares.from_mapping(
                {t: sum(n for n, h in zip(self.model.pages, homes, strict=True) if h == t) / total for t in TIERS}
            )
        static = self.asked.batch_size is not None
        policy = Policy(
            weights=shares,
            kv=self.asked.kv or Shares.from_mapping({self.compute: 1.0}),
            activations=self.asked.activations or Shares.from_mapping({self.compute: 1.0}),
            rows=rows,
            sweep_tokens=max(cut.sweep, rows if static else 1),
            batch_tokens=cut.batch,
            slots=cut.slots,
            admission="static" if static else "continuous",
            batch_size=self.asked.batch_size,
            num_batches=self.asked.num_batches,
        )
        reserved = {self.compute: self.fixed(cut) + rows * self.model.state}
        return Placement(policy, tuple(homes), kv, self.staging(), reserved)

    def _check_host(self, homes: list[Tier], kv: Mapping[Tier, int]) -> None:
        """UserError where host memory beside a gpu does not hold what was put there, and what passes through it."""
        if self.compute == "cpu":
            return
        pages = sum(n for n, home in zip(self.model.pages, homes, strict=True) if home == "cpu")
        needed = pages + kv.get("cpu", 0) + 2 * self.page
        if needed > self.ledger.free("cpu"):
            least = _least_mib(self.ledger.taken.get("cpu", 0) + needed)
            budget = format_bytes(self.ledger.budget.get("cpu", 0))
            raise UserError(
                f"--cpu-memory {budget} is too small for what is placed there: weights {format_bytes(pages)}, KV "
                f"{format_bytes(kv.get('cpu', 0))}, two page buffers. The least that works is {least}MiB."
            )

    def _room_below(self, tier: Tier) -> int:
        room = self.ledger.free(tier)
        if room <= 0:
            raise UserError(f"--kv puts part of the KV on {tier}, where no memory is allowed: raise --{tier}-memory")
        return room

    def _homes(self, resident_room: int) -> list[Tier]:
        """The tier of every page: as asked, or the fastest tier filled first and the rest streamed."""
        pages = list(self.model.pages)
        if self.asked.weights is not None:
            return spread(pages, self.asked.weights)
        budgets: dict[Tier, int] = {self.compute: max(0, resident_room)}
        if self.compute == "gpu":
            budgets["cpu"] = max(0, self.ledger.free("cpu") - 2 * self.page)
        budgets["disk"] = sum(pages)
        # Embedding tables stream for nothing (their rows are read): let them rest in memory last.
        first = [i for i in range(len(pages)) if i not in self.model.tables]
        placed = dict(zip(first, place_within([pages[i] for i in first], budgets), strict=True))
        for tier in (self.compute, "cpu"):
            used = sum(pages[i] for i, home in placed.items() if home == tier)
            for i in sorted(self.model.tables - placed.keys()):
                if used + pages[i] <= budgets.get(tier, 0):
                    placed[i] = tier
                    used += pages[i]
        return [placed.get(i, "disk") for i in range(len(pages))]
