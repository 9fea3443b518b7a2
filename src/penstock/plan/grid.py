"""Cuts of the work that a search looks at: one fixed grid, and what lies beside a cut.

The same whatever the budgets: were it to depend on them, more memory could make a plan worse.
"""

from collections.abc import Iterator
from dataclasses import replace

from penstock.plan.case import Case
from penstock.plan.policy import Policy, Shares
from penstock.plan.sizes import Cut
from penstock.plan.types import Asked

_ROWS = tuple(sorted({1, 2, 3} | {2**n for n in range(2, 13)} | {3 * 2**n for n in range(1, 11)}))
_CALL_TOKENS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_SWEEP_CALLS = (1, 2, 4, 8)
_SLOTS = 2  # a third takes memory for what only a run shows
_MOST_SWEEP = 32768


def cuts(case: Case) -> Iterator[Cut]:
    """The grid, less what is fixed, and less rows that are never in flight."""
    asked = case.asked
    given = asked.rows or (asked.batch_size or 0) * (asked.num_batches or 0)
    rows_grid = (given,) if given else tuple(r for r in (*_ROWS, case.job.prompts) if r <= case.job.prompts)
    most_call = _CALL_TOKENS[-1] if case.compute == "gpu" else case.shape.footprint.call_tokens
    calls = (asked.batch_tokens,) if asked.batch_tokens else tuple(n for n in _CALL_TOKENS if n <= most_call)
    fewer = 0
    for rows in dict.fromkeys(rows_grid):
        for batch in calls:
            for sweep in (asked.sweep_tokens,) if asked.sweep_tokens else tuple(batch * n for n in _SWEEP_CALLS):
                never = fewer >= case.in_flight(sweep) and rows < case.job.prompts
                if rows <= sweep <= _MOST_SWEEP and not never:
                    yield Cut(asked.slots or _SLOTS, batch, rows, sweep)
        fewer = rows


def beside(case: Case, cut: Cut) -> Iterator[Cut]:
    """Cuts that differ from one in a thing that is not fixed."""
    asked = case.asked
    if asked.sweep_tokens is None:
        for sweep in (cut.sweep // 2, cut.sweep * 2):
            batch = cut.batch if asked.batch_tokens else min(cut.batch, sweep)
            if max(batch, 32) <= sweep <= _MOST_SWEEP:
                yield replace(cut, sweep=sweep, batch=batch)
    yield from other_slots(case, cut)
    if asked.rows is None and asked.batch_size is None:
        fewer, more = [rows for rows in _ROWS if rows < cut.rows], more_rows(case, cut.rows)[:1]
        # where some are never in flight, the fewest of these too, and none beyond
        enough = [rows for rows in fewer if rows >= case.in_flight(cut.sweep)]
        for rows in dict.fromkeys((*enough[:1], *fewer[-1:], *(() if enough else more), *fewer[-3:-2])):
            yield replace(cut, rows=rows)
    if asked.batch_tokens is None:
        for batch in (cut.batch // 2, cut.batch * 2):
            if 32 <= batch <= cut.sweep and batch <= max(case.shape.footprint.call_tokens, 32):
                yield replace(cut, batch=batch)


def other_slots(case: Case, cut: Cut) -> Iterator[Cut]:
    """A cut with a slot more, or less, where that is not fixed."""
    if case.asked.slots is None:
        yield replace(cut, slots=3 if cut.slots == 2 else 2)


def cut_of(policy: Policy) -> Cut:
    """How a policy cuts the work."""
    return Cut(policy.slots, policy.batch_tokens, policy.rows, policy.sweep_tokens)


def wish(case: Case, cut: Cut, kv: Shares) -> Asked:
    """A wish for a cut, and for KV where it is said to rest."""
    return replace(
        with_kv(case, kv),
        rows=None if case.asked.batch_size is not None else cut.rows,
        sweep_tokens=cut.sweep,
        batch_tokens=cut.batch,
        slots=cut.slots,
    )


def with_kv(case: Case, kv: Shares) -> Asked:
    """What is asked, and KV where it is said to rest: where new keys are written it does so unasked."""
    return replace(case.asked, kv=case.asked.kv or (kv if kv.of(case.kv_tier) < 1 else None))


def more_rows(case: Case, rows: int) -> list[int]:
    """Numbers of rows of the grid beyond one, as far as the job has them."""
    return [more for more in _ROWS if rows < more <= case.job.prompts]
