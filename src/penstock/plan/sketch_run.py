"""A virtual run in which rows are counted, not kept.

Rows that decode all go on by one token a sweep. So it is enough to know how many there are, how many keys they have in
all, in which sweep each ends, and how many of them a sweep lets begin a new block; a sweep then costs what the rows do
that come and go in it, and sweeps in which none does are gone through at once. Rows enter, give way and end as with the
scheduler. Left out is where KV rests, and that rows wait for those that compute what they share.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

from penstock.plan.case import Case
from penstock.plan.sketch_prices import Outline
from penstock.plan.sketch_rows import SketchedHome, SketchedRow, homes_of
from penstock.plan.types import Placement
from penstock.plan.virtual import AHEAD


class SketchRun:
    """One job, or a part of it. rows: in the order in which they ask for room, with what they may generate."""

    def __init__(self, case: Case, placement: Placement, rows: Iterator[tuple[int, SketchedRow]]) -> None:
        self.case, self.policy = case, placement.policy
        self.block_tokens = case.shape.footprint.block_tokens
        self.coming = rows
        self.waiting: list[tuple[int, int, SketchedRow]] = []  # a heap: who may generate most is first
        self.returning: deque[SketchedRow] = deque()
        self.asked = 0
        self.flight: list[SketchedRow] = []  # in the order of admission; ended ones are struck out late
        self.prefilling: list[SketchedRow] = []
        self.decoding = self.keys = 0
        self.ending: dict[int, list[SketchedRow]] = {}
        self.sweep = 0
        self.grown = -1  # the last sweep whose new blocks are counted
        self.rows = 0
        self.passing = 0  # blocks on the compute tier that go to their homes before the next sweep
        self.here, self.homes = homes_of(case, placement)
        self.gave_way = False

    def run(self) -> Outline:
        """Runs it, and counts what is priced alike."""
        outline = Outline(self.policy.batch_tokens, self.case.chunking)
        while self._more():
            spans, finished = self._next()
            decoding, keys = self.decoding, self.keys
            if spans:
                outline.mixed(decoding, keys, spans, len(finished))
                outline.tokens_in += sum(row.prompt for row in finished if row.length == row.prompt)
            else:
                outline.decode(decoding, keys, 1 + self._go_on())
            self._done(finished)
        return outline

    def _go_on(self) -> int:
        """Sweeps, after one without prompts, that are as this one: until a row ends, or a tier may be short.

        Who found no room in this one finds none in those, where rows only grow.
        """
        passed = 0
        last = self.sweep if self.gave_way or self.prefilling else min(self.ending) - 1
        while self.sweep < last and self._may_grow(self.sweep + 1):
            self.keys += self.decoding
            self.sweep += 1
            self.here.used -= self.passing
            self._grow()
            passed += 1
        return passed

    def _more(self) -> bool:
        """Take in requests as a run does; False where no row is left."""
        while len(self.waiting) + len(self.returning) < AHEAD and (one := next(self.coming, None)) is not None:
            most, row = one
            heappush(self.waiting, (-most, self.asked, row))
            self.asked += 1
        return bool(self.rows or self.waiting or self.returning)

    def _next(self) -> tuple[list[tuple[int, int]], list[SketchedRow]]:
        """Spans of prompts in the next sweep, as (first, count), and the rows whose prompts end with it."""
        self.gave_way = False
        phase = self.sweep % self.block_tokens
        self.here.used -= self.passing
        while self.here.used + self.here.due[phase] > self.here.capacity:
            if not self._drop_newest(self.here):
                break
        for home in self.homes:
            while home.used + home.due[phase] > home.capacity and self._drop_newest(home):
                pass
        self._grow()
        left = self.policy.sweep_tokens - self.decoding
        spans: list[tuple[int, int]] = []
        finished: list[SketchedRow] = []

        def prefill(row: SketchedRow) -> None:
            nonlocal left
            unknown = row.length - row.computed
            wanted = min(unknown, left) if self.case.chunking else unknown
            if wanted <= 0 or (wanted > left and spans):
                return
            count = self._extend(row, wanted)
            if count:
                spans.append((row.computed, count))
                row.computed += count
                left -= count
                if row.computed == row.length:
                    finished.append(row)

        for row in list(self.prefilling):
            if left <= 0:
                break
            if row.since == -1 and row in self.prefilling:
                prefill(row)
        most = min(self.policy.rows, self.policy.sweep_tokens)
        while left > 0 and self.rows < most and not (self.gave_way and self.rows):
            entering = self._enter()
            if entering is None:
                break
            prefill(entering)
        self.prefilling = [row for row in self.prefilling if row.computed < row.length]
        return spans, [row for row in finished if row.computed]

    def _may_grow(self, sweep: int) -> bool:
        """Whether every tier has room for the blocks that a later sweep begins."""
        phase, here = sweep % self.block_tokens, self.here
        return here.used - self.passing + here.due[phase] <= here.capacity and all(
            home.used + home.due[phase] <= home.capacity for home in self.homes if home is not here
        )

    def _grow(self) -> None:
        """Begin the blocks that rows which decode need in this sweep, each in the place of one that has gone home."""
        phase = self.sweep % self.block_tokens
        self.passing = 0
        for home in self.homes:
            home.used += home.due[phase]
            home.claimed += home.due[phase]
        self.grown = self.sweep

    def _enter(self) -> SketchedRow | None:
        """The next row that waits, where there is room for what it knows beside a block ahead for all others."""
        row = self.returning[0] if self.returning else self.waiting[0][2] if self.waiting else None
        if row is None:
            return None
        needs = -(-row.length // self.block_tokens) - row.shared // self.block_tokens
        home = self._home_with_room(needs)
        if home is None:
            return None
        if self.returning:
            self.returning.popleft()
        else:
            heappop(self.waiting)
        row.computed = row.shared
        row.home = home
        home.claimed += needs
        home.rows += 1
        self._keep_tail(home, 1)
        self.rows += 1
        self.flight.append(row)
        self.prefilling.append(row)
        return row

    def _pass(self, home: SketchedHome, blocks: int) -> None:
        """New blocks are written on the compute tier; those that are full go home before the next sweep."""
        if home is not self.here:
            self.passing += blocks
            self.here.used += blocks

    def _keep_tail(self, home: SketchedHome, rows: int) -> None:
        """A row's last block stays on the compute tier wherever the others are."""
        if home is not self.here:
            home.used -= rows
            home.claimed -= rows
            self.here.used += rows
            self.here.claimed += rows

    def _home_with_room(self, needs: int) -> SketchedHome | None:
        """The home furthest below its share of those that hold so many blocks, and a block ahead for all their rows."""
        if not self.rows:
            return self.homes[0]
        homes = self.homes
        if len(homes) > 1:
            total = sum(home.claimed for home in homes) + needs
            homes = sorted(homes, key=lambda home: home.claimed - home.share * total)
        for home in homes:
            if self._fits(home, needs):
                return home
        return None

    def _fits(self, home: SketchedHome, needs: int) -> bool:
        here = self.here
        if home is here:
            return here.claimed + here.rows + needs <= here.capacity
        return home.claimed + home.rows + needs - 1 <= home.capacity and here.claimed + here.rows < here.capacity

    def _extend(self, row: SketchedRow, wanted: int) -> int:
        """Tokens of a prefill for which there are blocks; newer rows give way where it could not go on at all."""
        held, home = row.shared // self.block_tokens + row.blocks, row.home
        assert home is not None  # it is in flight
        kept = int(home is not self.here and not row.blocks)  # its first block has the place that its last one keeps
        while True:
            missing = -(-(row.computed + wanted) // self.block_tokens) - held
            room = max(0, self.here.capacity - self.here.used + kept) if self.rows > 1 else missing
            if missing > room:
                wanted, missing = min(wanted, (held + room) * self.block_tokens - row.computed), room
            if wanted > 0:
                row.blocks += missing
                home.used += missing
                self._pass(home, missing - kept)
                return wanted
            if not self._drop_newest(self.here) or row.home is None:
                return 0
            wanted = 1

    def _drop_newest(self, home: SketchedHome) -> bool:
        """The newest row with KV on a tier gives it up and waits before all others; False where it is the only row."""
        if self.rows <= 1:
            return False
        row = next((row for row in reversed(self.flight) if row.home is home or (row.home and home is self.here)), None)
        if row is None:
            return False
        self.flight.remove(row)
        self.gave_way = True
        if row.since >= 0:
            self.ending[row.ends].remove(row)
            self._stop(row)
            generated = self.sweep - row.since
            row.length += generated + 1
            row.left -= generated
            row.since = row.ends = -1
        else:
            self.prefilling.remove(row)
            self._leave(row, row.blocks, -(-row.length // self.block_tokens) - row.shared // self.block_tokens)
        row.blocks = row.computed = 0
        self.returning.appendleft(row)
        return True

    def _stop(self, row: SketchedRow) -> None:
        """Take away a row that decodes, before the sweep or after it."""
        assert row.home is not None  # it is in flight
        self.decoding -= 1
        self.keys -= row.length + self.sweep - row.since
        phase = (row.since - row.length) % self.block_tokens
        row.home.due[phase] -= 1
        # blocks begun since it decodes: one for each sweep of its phase that has passed
        begun = (self.grown - phase) // self.block_tokens - (row.since - 1 - phase) // self.block_tokens
        self._leave(row, row.blocks + begun, row.blocks + begun)

    def _leave(self, row: SketchedRow, used: int, claimed: int) -> None:
        assert row.home is not None  # it is in flight
        row.home.used -= used
        row.home.claimed -= claimed
        row.home.rows -= 1
        self._keep_tail(row.home, -1)
        row.home = None
        self.rows -= 1

    def _done(self, finished: Sequence[SketchedRow]) -> None:
        """A sweep further: rows end, and those whose prompts have ended decode."""
        self.keys += self.decoding
        self.sweep += 1
        for row in self.ending.pop(self.sweep, ()):
            self._stop(row)
        for row in finished:
            row.since, row.left = self.sweep, row.left - 1
            row.ends = self.sweep + row.left
            if row.left <= 0 or row.home is None:
                self._leave(row, row.blocks, row.blocks)
                continue
            self.decoding += 1
            self.keys += row.length
            row.home.due[(row.since - row.length) % self.block_tokens] += 1
            self.ending.setdefault(row.ends, []).append(row)
        if len(self.flight) > 2 * self.rows + 64:
            self.flight = [row for row in self.flight if row.home is not None]
