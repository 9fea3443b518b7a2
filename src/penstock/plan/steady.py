"""What a cut of the work would do, in closed form: a job as a fill, a steady middle and a tail. For a search only."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from penstock.plan.case import Case
from penstock.plan.cost import Priced
from penstock.plan.linear import Infeasible, Item, Lane, Optimum, Program, solve
from penstock.plan.load import Load, Spans
from penstock.plan.policy import TIERS, Policy, Shares, Tier
from penstock.plan.sizes import Cut, Sizes
from penstock.plan.split_cost import Cost, cost_of

_WAVES = 3  # of a job whose rows still end together


@dataclass(frozen=True, slots=True)
class Estimate:
    """A cut with KV so shared, and what it would do. rows: in flight, of those that the cut has. sweep_s: of the steady
    middle. tok_s: generated, of the whole job. optimum: the linear program's answer, where it was asked."""

    cut: Cut
    kv: Shares
    rows: float
    sweep_s: float
    tok_s: float
    optimum: Optimum | None = None


class Steady:
    """Estimates of one case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._at_hand = Shares.from_mapping({case.kv_tier: 1.0})
        self._policy = case.extended(_policy(case, Cut(2, 256, 1, 256), self._at_hand))
        # where something may rest that takes bytes there; weights lie on disk where they take no more
        allowed = [tier for tier in TIERS if not (tier == "disk" and case.no_disk)]
        self._tiers = tuple(tier for tier in allowed if case.ledger.free(tier) > 0)
        self._weight_tiers = tuple(tier for tier in allowed if tier in self._tiers or tier == "disk")
        self._estimates: dict[tuple[Cut, Shares], Estimate | None] = {}
        self._costs: dict[tuple[int, int], Cost] = {}
        self._with_kv: dict[tuple[tuple[int, int], Shares], Cost] = {}
        self._sizes: dict[Shares | None, Sizes] = {}

    def places(self) -> Sequence[Shares]:
        """Where KV may rest in one place: as the case asks, or on each tier, the compute tier first.

        All of it is on the cpu where that computes layers beside a gpu.
        """
        if (asked := self.case.asked.kv) is not None or self.case.asked.cpu_layers:
            return [asked or self._at_hand]
        below = [tier for tier in self._tiers if tier != self.case.compute]
        return [Shares.from_mapping({tier: 1.0}) for tier in (self.case.compute, *below)]

    def estimate(self, cut: Cut, shares: Shares | None = None) -> Estimate | None:
        """What a cut would do with KV so shared between tiers (None: as the case asks); None where it does not fit."""
        kv = shares or self.case.asked.kv or self._at_hand
        if (cut, kv) not in self._estimates:
            self._estimates[cut, kv] = self._estimated(cut, kv)
        return self._estimates[cut, kv]

    def _estimated(self, cut: Cut, kv: Shares) -> Estimate | None:
        case, sizes = self.case, self._sizes_of(kv)
        rooms = self._rooms(cut, kv)
        if any(rooms[tier] < self._least(sizes, tier) for tier in rooms):
            return None
        row = self._row_held(sizes, kv)
        fitting = min((rooms[tier] / nbytes for tier, nbytes in row.items() if nbytes), default=float(cut.rows))
        rows = min(cut.rows, case.job.prompts, max(1.0, fitting))
        taken = self._kv_taken(cut, kv)
        left = {tier: max(0.0, room - taken.get(tier, 0.0)) for tier, room in rooms.items()}
        streamed = self._streamed(left)
        if streamed is None:
            return None
        cost = self._cost(cut, kv)
        seconds, middle = self._job_s(cut, rows, lambda load: cost.closed_form([load], streamed))
        return Estimate(cut, kv, rows, middle.seconds, case.job.prompts * case.generated / seconds)

    def _rooms(self, cut: Cut, kv: Shares) -> Mapping[Tier, float]:
        """Bytes for KV and pages of the compute tier, and of those below that hold any."""
        case, sizes = self.case, self._sizes_of(kv)
        rooms = {case.compute: float(case.ledger.free(case.compute) - sizes.fixed(cut))}
        for tier in self._tiers:
            if tier != case.compute:
                taken = sizes.attending(cut, tier)
                if tier == "cpu":
                    taken += 2 * sizes.page + (sizes.pages_asked(tier) if sizes.splits else 0)
                rooms[tier] = float(case.ledger.free(tier) - taken)
        return rooms

    def _least(self, sizes: Sizes, tier: Tier) -> float:
        """Bytes of a tier without which no row can be run."""
        if tier == self.case.kv_tier:
            return sizes.row_least()
        if tier == self.case.compute:
            return 0.0
        return (
            sizes.row_bytes(self.case.job.longest_tokens) if sizes.asked.kv and sizes.asked.kv.of(tier) else -math.inf
        )

    def _row_held(self, sizes: Sizes, kv: Shares) -> Mapping[Tier, float]:
        """Bytes that a row in flight holds by tier: wherever its KV rests, its last block is where it is written."""
        footprint, row, newest = self.case.shape.footprint, self.row_bytes(sizes), self.case.kv_tier
        held = {tier: kv.of(tier) * row for tier in self._tiers}
        tail = (1 - kv.of(newest)) * footprint.kv_block
        return held | {newest: kv.of(newest) * row + tail + footprint.kept}

    def _kv_taken(self, cut: Cut, kv: Shares) -> Mapping[Tier, float]:
        """Bytes of KV that the placement rule gives to the rows of a cut, as far as there are so many."""
        case, footprint = self.case, self.case.shape.footprint
        full = cut.rows * self._sizes_of(kv).row_bytes(case.job.mean_tokens)
        taken = {tier: kv.of(tier) * full for tier in self._tiers}
        tails = cut.rows * 2 * footprint.kv_block + cut.batch * footprint.kv_block / footprint.block_tokens
        here = kv.of(case.kv_tier)
        return taken | {case.kv_tier: here * full + (tails if here < 1 else 0.0) + cut.rows * footprint.kept}

    def placed(self, cut: Cut) -> Estimate | None:
        """The same, with weights, KV and activations where the linear program puts them; None where nothing fits.

        None, too, where the cpu computes layers beside a gpu, and has all KV.
        """
        case, shape = self.case, self.case.shape
        if case.asked.cpu_layers:
            return None
        sizes = self._sizes_of(case.asked.kv)
        rows = float(min(cut.rows, case.job.prompts))
        load = self._middle(cut, rows)
        kv_bytes = int(rows * self.row_bytes(sizes))
        # wherever a row's KV rests, the blocks that it is written to are on the compute tier
        tails = int(rows * 2 * shape.footprint.kv_block)
        buffers = {(tier, case.compute): tails for tier in self._tiers if tier != case.compute}
        items = {
            "weights": Item(shape.page_bytes, self._weight_tiers, in_place="disk"),
            "kv": Item(kv_bytes, self._tiers, buffers),
        }
        capacity: dict[Tier, int] = {t: max(0, case.ledger.free(t)) for t in self._weight_tiers}
        capacity[case.compute] = max(0, case.ledger.free(case.compute) - sizes.fixed(cut))
        nothing: dict[Tier, float] = {}
        base = self._cost(cut, Shares.from_mapping({case.compute: 1.0})).closed_form([load], nothing).lanes
        share_s: dict[str, dict[tuple[str, Tier], float]] = {}
        here = Shares.from_mapping({case.compute: 1.0})
        for place in ((name, tier) for name, item in items.items() for tier in item.tiers if tier != case.compute):
            what, tier = place
            whole: dict[Tier, float] = {tier: float(shape.page_bytes)} if what == "weights" else nothing
            kv = Shares.from_mapping({tier: 1.0}) if what == "kv" else here
            for lane, busy in self._cost(cut, kv).closed_form([load], whole).lanes.items():
                share_s.setdefault(lane, {})[place] = max(0.0, busy - base.get(lane, 0.0))
        lanes = {lane: Lane(base.get(lane, 0.0), share_s.get(lane, {})) for lane in {*base, *share_s}}
        try:
            found = solve(Program(items, capacity, lanes), settle_ties=False)
        except Infeasible:
            return None
        shares = Shares.from_mapping(_tidy(found.shares["kv"], case.compute))
        estimate = self.estimate(cut, shares)
        return None if estimate is None else replace(estimate, optimum=found)

    def row_bytes(self, sizes: Sizes) -> int:
        """KV of a row halfway through what it generates."""
        return sizes.row_bytes(int(self.case.prompt + self.case.generated / 2))

    def _streamed(self, left: Mapping[Tier, float]) -> Mapping[Tier, float] | None:
        """Page bytes by tier below the compute tier, fastest filled first; None where they do not fit.

        left: bytes for pages by tier.
        """
        case = self.case
        beside = float(self._sizes_of(case.asked.kv).beside_bytes)
        pages = case.shape.page_bytes - beside
        streamed: dict[Tier, float] = {"cpu": beside} if beside else {}
        for tier in self._weight_tiers:
            # the checkpoint's own bytes on disk take nothing from the budget there
            part = pages if tier == "disk" else min(pages, left.get(tier, 0.0))
            pages -= part
            if tier != case.compute and part > 0:
                streamed[tier] = streamed.get(tier, 0.0) + part
        return streamed if pages <= 0 else None

    def _cost(self, cut: Cut, kv: Shares) -> Cost:
        case = self.case
        # rows matter only to where layers on the cpu are computed
        key = slots, rows = min(cut.slots, 2), cut.rows if case.asked.cpu_layers else 1
        if key not in self._costs:
            lowest: Tier = "cpu" if case.no_disk else "disk"
            homes = [lowest] * len(case.shape.pages)  # of tables, which rest in memory last of all
            policy = replace(self._policy, slots=slots, rows=rows)
            self._costs[key] = cost_of(case.shape, case.machine, policy, homes)
        if (key, kv) not in self._with_kv:
            self._with_kv[key, kv] = self._costs[key].with_kv(kv)
        return self._with_kv[key, kv]

    def _sizes_of(self, kv: Shares | None) -> Sizes:
        if kv not in self._sizes:
            case = self.case
            asked = replace(case.asked, kv=kv)
            self._sizes[kv] = Sizes(case.shape.footprint, case.job, case.ledger, asked, case.compute)
        return self._sizes[kv]

    def _middle(self, cut: Cut, rows: float) -> Load:
        """A steady sweep's load: a decode token of every row, and of prompts what makes up for the rows that end."""
        case = self.case
        prefill = min(rows * case.computed_prompt / case.generated, max(0.0, cut.sweep - rows))
        return self._load(cut, rows, prefill)

    def _load(self, cut: Cut, decode: float, prefill: float) -> Load:
        """Spans of a sweep. Several calls are priced as one of their mean size, as often."""
        case = self.case
        tokens = decode + prefill
        calls = max(1, round(tokens / cut.batch + 0.499))
        computed = case.computed_prompt
        chunk = min(computed, max(1.0, cut.batch))
        spans = [Spans(decode, case.prompt + case.generated / 2, 1)] if decode else []
        if prefill:
            before = max(0.0, case.prompt - computed + (computed - chunk) / 2)
            spans.append(Spans(prefill / chunk, before, chunk))
        return Load(tuple(spans), decode + prefill / computed, calls)

    def _job_s(self, cut: Cut, rows: float, price: Callable[[Load], Priced]) -> tuple[float, Priced]:
        """Seconds of the job, and its steady sweep.

        A short job goes in waves: rows come in together, decode together and end together. In a long one they have
        come apart, and every sweep carries the prompts that make up for the rows that end. Both promise too much of
        ragged rows: what promises too little would not be sketched.
        """
        case = self.case
        count, prompt, generated = case.job.prompts, case.computed_prompt, case.generated
        apart = case.in_flight(cut.sweep)
        waves = math.ceil(count / min(rows, float(cut.sweep)) - 1e-9)
        in_waves = waves <= _WAVES and (rows <= apart or waves == 1)
        rows = min(rows, float(cut.sweep)) if in_waves else min(rows, apart)
        middle = price(self._middle(cut, rows))
        together = count / waves if in_waves else rows
        fill = price(self._load(cut, 0.0, min(float(cut.sweep), together * prompt)))
        filling = together * prompt / cut.sweep * fill.seconds
        if in_waves:
            return waves * (filling + generated * price(self._load(cut, together, 0.0)).seconds), middle
        tail = price(self._load(cut, max(1.0, rows / 2), 0.0))
        return filling + (count - rows) * generated / rows * middle.seconds + generated * tail.seconds, middle


def _policy(case: Case, cut: Cut, kv: Shares) -> Policy:
    here, asked = Shares.from_mapping({case.compute: 1.0}), case.asked
    return Policy(
        here,
        kv,
        here,
        cut.rows,
        cut.sweep,
        cut.batch,
        cut.slots,
        attention="cpu" if asked.attends_beside(case.compute) else None,
        cpu_layers=asked.cpu_layers or 0,
        cpu_tokens=asked.cpu_tokens or 0,
    )


def _tidy(shares: Mapping[Tier, float], compute: Tier) -> dict[Tier, float]:
    """Shares of KV in whole percents, what is less than that on the compute tier."""
    tidy: dict[Tier, float] = {tier: int(100 * part) / 100 for tier, part in shares.items() if tier != compute}
    return {compute: 1.0 - sum(tidy.values()), **tidy}
