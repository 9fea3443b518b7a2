"""What the placement rule makes of a wish within a case; where nothing may rest on disk, all pages stay in memory."""

from dataclasses import replace

from penstock.errors import UserError
from penstock.plan.case import Case
from penstock.plan.policy import Shares
from penstock.plan.rule import decide
from penstock.plan.sizes import least_mib
from penstock.plan.types import Asked, Placement
from penstock.units import format_bytes

_LEAST_TOKENS, _LEAST_SLOTS = 32, 2


def placed(case: Case, asked: Asked) -> Placement:
    """The placement. Raises UserError, with the least that works, where a budget is too small."""
    if not case.no_disk or asked.weights is not None:
        return _by_rule(case, asked)
    if case.compute == "cpu":
        return _by_rule(case, replace(asked, weights=Shares(cpu=1.0)))
    for fewer in _ever_less(asked, _by_rule(case, asked)):
        found = _by_rule(case, fewer)
        if not (missing := case.on_disk(found.homes)):
            return found
    ledger = case.ledger
    enough = least_mib(ledger, "cpu", max(0, ledger.free("cpu")) + missing + max(case.shape.footprint.pages))
    raise UserError(
        f"--cpu-memory {format_bytes(ledger.budget.get('cpu', 0))} is too small without a disk: {format_bytes(missing)}"
        f" of weights fit neither gpu nor cpu. The least that works is {enough}MiB."
    )


def hidden(case: Case) -> int:
    """T* of a case where all pages stream, for the simple rule."""
    link = case.machine.links.get("cpu→gpu" if case.compute == "gpu" else "disk→cpu")
    if link is None or not case.shape.token_flops:
        return 0
    curve = case.machine.processors[case.compute].curve(case.shape.arithmetic)
    return int(link.seconds(case.shape.page_bytes) * curve.at(256) / case.shape.token_flops)


def _by_rule(case: Case, asked: Asked) -> Placement:
    return decide(case.shape.footprint, case.job, case.ledger, asked, case.compute, hidden(case))


def _ever_less(asked: Asked, first: Placement) -> list[Asked]:
    """The wish, and the same with fewer rows and at last the smallest calls, as far as nobody fixed these: what rows
    and calls leave of the gpu holds pages."""
    wishes = [asked]
    if asked.rows is None and asked.batch_size is None:
        rows = first.policy.rows
        while rows > 1:
            rows //= 2
            wishes.append(replace(asked, rows=rows))
    smallest = replace(
        wishes[-1],
        sweep_tokens=asked.sweep_tokens or _LEAST_TOKENS,
        batch_tokens=asked.batch_tokens or _LEAST_TOKENS,
        slots=asked.slots or _LEAST_SLOTS,
    )
    return [*wishes, smallest]
