"""Memory of a run as a function of how its work is cut: what the rule and the planner's search count with. No torch."""

from dataclasses import dataclass

from penstock.errors import UserError
from penstock.plan.placement import bytes_by_tier, spread
from penstock.plan.policy import TIERS, Shares, Tier
from penstock.plan.types import Asked, Footprint, Job, Ledger
from penstock.units import format_bytes

JITTER_BYTES = 16 << 20  # what the interpreter and its libraries take differs by this from one start to the next
_HELD = 2  # a suspended call keeps less than 1/2 of what it takes when it runs (measured: 0.20 to 0.45)
_LEAST_FILE_BYTES = 64 << 10
_BESIDE_BYTES = 192 << 20  # of attention beside a gpu: numba and its kernels, keys and values of a long span copied out
_SPLIT_TOKENS = 32  # of a sweep that the cpu computes layers in, where no machine says more
_PANEL_BYTES = 12 << 20  # of products on the cpu beside a gpu: weights widened at a time
_STATE_COPIES = 4  # of one layer's states in a call: gathered, updated in two steps, put back


def least_mib(ledger: Ledger, tier: Tier, needed: int) -> int:
    """A budget that leaves so many bytes free, in MiB: what is taken of memory at the next start differs from now."""
    return -(-(ledger.least(tier, needed) + (0 if tier == "disk" else JITTER_BYTES)) // (1 << 20))


def parking_file_bytes(nbytes: int) -> int:
    """Disk space of a file for so many bytes of one call's activations, which grows by doubling."""
    return max(_LEAST_FILE_BYTES, 1 << (nbytes - 1).bit_length())


@dataclass(frozen=True, slots=True)
class Cut:
    """How the work is cut: page slots, tokens of a call, rows, tokens of a sweep."""

    slots: int
    batch: int
    rows: int
    sweep: int


class Sizes:
    """Memory of a run as a function of how the work is cut."""

    def __init__(self, model: Footprint, job: Job, ledger: Ledger, asked: Asked, compute: Tier) -> None:
        self.model, self.job, self.ledger, self.asked, self.compute = model, job, ledger, asked, compute
        self.streamable = list(model.pages)
        for table in sorted(model.tables, reverse=True):
            del self.streamable[table]
        self.page = max(self.streamable, default=0)
        self.beside_pages = model.first_pages(asked.cpu_layers or 0)

    def row_bytes(self, tokens: int) -> int:
        """KV of one row of so many tokens, with the block that it grows into."""
        return (-(-tokens // self.model.block_tokens) + 1) * self.model.kv_block

    def fixed(self, cut: Cut) -> int:
        """Bytes of the compute tier before KV and resident pages."""
        tokens = max(cut.batch, self.job.longest_prompt) if self.model.state else cut.batch
        logits = (tokens if self.job.scored else min(cut.rows, cut.batch)) * self.model.logit_bytes
        workspace = max(tokens * self.model.call_bytes, logits + tokens * self.model.call_bytes // 4)
        workspace += _STATE_COPIES * min(cut.rows, cut.batch) * self.model.state_layer
        workspace += self.suspended(cut)
        ring = min(cut.slots, len(self.streamable)) * self.page
        return self.model.core + workspace + ring + self.staged(self.compute) + self.asking(self._sweep_tokens(cut))

    def asking(self, tokens: int) -> int:
        """Bytes on the compute tier of questions to attention beside it, and of their answers, for so many tokens."""
        model = self.model
        if self.splits:
            return tokens * (model.query_bytes + model.key_bytes + 2 * model.found_bytes)
        return tokens * (model.query_bytes + 2 * model.answer_bytes) if self.beside else 0

    @property
    def beside(self) -> bool:
        """Whether the cpu attends beside a gpu."""
        return self.asked.attends_beside(self.compute)

    @property
    def splits(self) -> bool:
        """Whether the cpu computes layers beside a gpu."""
        return bool(self.asked.cpu_layers)

    @property
    def beside_bytes(self) -> int:
        """Bytes of the pages of these layers."""
        return sum(self.model.pages[i] for i in self.beside_pages)

    @property
    def kv_tier(self) -> Tier:
        """Where new keys are written."""
        return self.asked.kv_tier(self.compute)

    @property
    def cpu_tokens(self) -> int:
        """Tokens of a sweep up to which the cpu computes its layers, where rows are not more."""
        if not self.splits:
            return 0
        return _SPLIT_TOKENS if self.asked.cpu_tokens is None else self.asked.cpu_tokens

    def attending(self, cut: Cut, tier: Tier) -> int:
        """Bytes of a slower tier that attention beside the compute tier takes there, besides KV.

        All calls of a sweep may have asked it something, of rows on the cpu and on the disk apart; the memory of a
        question is a whole power of two.
        """
        if not self.beside or tier != "cpu":
            return 0
        if self.splits:
            return self._computing_beside(cut)
        asked = self._sweep_tokens(cut) * (self.model.query_bytes + self.model.answer_bytes)
        kv = self.asked.kv
        apart = 2 if self.staging() and (kv is None or kv.cpu > 0) else 1
        return _BESIDE_BYTES + 2 * apart * asked + self.staged(tier)

    def _computing_beside(self, cut: Cut) -> int:
        """Bytes of the cpu for layers that it computes, and for all attention.

        All calls of a sweep may be at the same layer: each has sent keys and a question, in memory of its own that is a
        whole power of two and may have served for either, or has its activations there. Vectors and small matrices of
        these layers are there twice, and counted as those of all.
        """
        model, tokens = self.model, self._sweep_tokens(cut)
        asked = 2 * tokens * max(model.query_bytes + model.found_bytes, model.key_bytes)
        computed = min(tokens, max(self.cpu_tokens, cut.rows))
        held = computed * (model.call_bytes // _HELD) + min(computed, cut.batch) * model.call_bytes
        return _BESIDE_BYTES + _PANEL_BYTES + model.core + 2 * asked + held + self.staged("cpu")

    def staged(self, tier: Tier) -> int:
        """Bytes of a tier for KV on its way to attention: two buffers where it runs."""
        return 2 * self.staging() if tier == ("cpu" if self.beside else self.compute) else 0

    def suspended(self, cut: Cut) -> int:
        """Bytes of activations on the compute tier of the calls that wait for a page while another one runs."""
        shares = self.asked.activations
        if shares is None:
            return max(0, self._sweep_tokens(cut) - cut.batch) * (self.model.call_bytes // _HELD)
        held = min(self._calls_on(self.compute, cut), self._calls(cut) - 1) * self._call_held(cut)
        # to the disk and back, through one buffer
        return held + (self._call_held(cut) if self.compute == "cpu" and shares.of("cpu") < 1 else 0)

    def parked(self, cut: Cut, tier: Tier) -> int:
        """Bytes of activations on a slower tier; every call has a place of its own there, also while it runs."""
        shares = self.asked.activations
        if shares is None:
            return 0
        each = self._call_held(cut) if tier == "cpu" else parking_file_bytes(self._call_held(cut))
        passing = self._call_held(cut) if tier == "cpu" and shares.disk > 0 else 0  # the buffer to the disk and back
        return self._calls_on(tier, cut) * each + passing

    def _calls_on(self, tier: Tier, cut: Cut) -> int:
        """Calls of a sweep that rest on a tier, at most: whole ones meet the shares as closely as they can."""
        share, calls = self.asked.activations.of(tier) if self.asked.activations else 0.0, self._calls(cut)
        return calls if share >= 1 else min(calls, int(share * calls + 1)) if share > 0 else 0

    def _calls(self, cut: Cut) -> int:
        return max(1, -(-self._sweep_tokens(cut) // cut.batch))

    def _call_held(self, cut: Cut) -> int:
        """Bytes that a call keeps while it waits."""
        tokens = max(cut.batch, self.job.longest_prompt) if self.model.state else cut.batch
        return tokens * (self.model.call_bytes // _HELD)

    def _sweep_tokens(self, cut: Cut) -> int:
        """Tokens of all calls of a sweep, at most."""
        if self.asked.batch_size is not None:
            return (self.asked.num_batches or 1) * max(cut.batch, self.asked.batch_size)
        return min(cut.sweep, self.job.prompts * self.job.longest_prompt)

    def staging(self) -> int:
        """Bytes of one buffer for KV that comes from slower tiers: the longest row's blocks of one layer, at least."""
        kv = self.asked.kv
        if kv is None or kv.of(self.compute) >= 1 or (self.beside and not kv.disk):
            return 0
        blocks = -(-self.job.longest_tokens // self.model.block_tokens) + 1
        return max(blocks * self.model.staged_layer, 8 << 20)

    def resident_asked(self) -> int:
        """Bytes of pages that a person put on the compute tier."""
        return self.pages_asked(self.compute)

    def pages_asked(self, tier: Tier) -> int:
        """Bytes of pages that a person put on a tier."""
        homes = self.homes_asked()
        if homes is not None:
            return bytes_by_tier(self.model.pages, homes)[tier]
        return self.beside_bytes if tier == "cpu" else 0

    def homes_asked(self) -> list[Tier] | None:
        """The tier of every page, where a person said what part of them rests where.

        UserError where layers that the cpu computes are more than its part.
        """
        pages, shares = list(self.model.pages), self.asked.weights
        if shares is None or not self.beside_pages:
            return None if shares is None else spread(pages, shares)
        total, there = sum(pages), self.beside_bytes
        others = {tier: shares.of(tier) * total - (there if tier == "cpu" else 0) for tier in TIERS}
        if others["cpu"] < -self.page:
            raise UserError(
                f"--weights puts {shares.cpu:.0%} on cpu, and the first {self.asked.cpu_layers} layers, which are"
                f" computed there, are {there / total:.0%} of them: give cpu more, or --compute-cpu-layers less"
            )
        others = {tier: max(0.0, part) for tier, part in others.items()}
        rest = [nbytes for i, nbytes in enumerate(pages) if i not in self.beside_pages]
        whole = sum(others.values()) or 1.0
        homes = iter(
            spread(rest, Shares.from_mapping({tier: part / whole for tier, part in others.items()})) if rest else []
        )
        return ["cpu" if i in self.beside_pages else next(homes) for i in range(len(pages))]

    def kv_share(self) -> float:
        """The part of KV on the tier where new keys are written."""
        return 1.0 if self.asked.kv is None else self.asked.kv.of(self.kv_tier)

    def kv_least(self) -> int:
        """KV room without which the longest row cannot be run."""
        if self.kv_share() > 0:
            return self.row_bytes(self.job.longest_tokens)
        return self.row_bytes(self.job.longest_prompt)  # blocks are written here before they go home

    def row_least(self) -> int:
        """Room for KV and state without which no row can be run."""
        return self.kv_least() + self.model.kept

    def rows_held(self, room: int, rows: int) -> int:
        """Of so many rows, those whose states and open blocks fit beside their KV. UserError where a static group does
        not."""
        kept, share = self.model.kept, self.kv_share()
        if not kept:
            return rows
        spare = room - self.kv_least()
        if self.asked.batch_size is not None:
            if rows * kept > spare:
                raise UserError(
                    f"{rows} rows keep {format_bytes(rows * kept)} beside their KV blocks on {self.kv_tier}, where "
                    f"{format_bytes(max(spare, 0))} are left for it: make --batch-size or --num-batches smaller"
                )
            return rows
        return min(rows, max(1, spare // (kept + int(share * self.row_bytes(self.job.mean_tokens)))))

    def needed(self, cut: Cut) -> int:
        """Bytes of the compute tier without which nothing runs so."""
        row = self.row_least() if self.kv_tier == self.compute else 0
        return self.fixed(cut) + row + self.resident_asked()

    def fits(self, cut: Cut) -> bool:
        """Whether the budget of the compute tier allows that, and that of the cpu which computes layers beside it."""
        beside = not self.splits or self.needed_beside(cut) <= self.ledger.free("cpu")
        return beside and self.needed(cut) <= self.ledger.free(self.compute)

    def needed_beside(self, cut: Cut) -> int:
        """Bytes of the cpu without which it computes no layers beside a gpu so."""
        return self.attending(cut, "cpu") + 2 * self.page + self.pages_asked("cpu") + self.row_least()

    def refusal(self, least: Cut) -> str:
        """Why the budget is too small even for the least cut, and the least budget that works."""
        taken, ring = self.ledger.taken.get(self.compute, 0), least.slots * self.page
        parts = [f"{least.slots} page slots {format_bytes(ring)}"]
        if self.kv_tier == self.compute:
            parts.append(f"one row {format_bytes(self.row_least())}")
        if self.compute == "cpu":
            parts.insert(0, f"the interpreter takes {format_bytes(taken)}")
        if resident := self.resident_asked():
            parts.append(f"resident pages {format_bytes(resident)}")
        budget = format_bytes(self.ledger.budget.get(self.compute, 0))
        parts.append(f"a call {format_bytes(self.fixed(least) - ring)}")
        given = f"--{self.compute}-memory {budget} is too small for this model"
        enough = least_mib(self.ledger, self.compute, self.needed(least))
        return f"{given}: {', '.join(parts)}. The least that works is {enough}MiB."
