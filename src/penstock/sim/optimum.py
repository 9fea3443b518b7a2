"""LB2: the least time that any policy could take, as a linear program over parts of items; for small instances."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from penstock.errors import UserError
from penstock.sim.initial import InitialState, initial_state
from penstock.sim.memories import Duplex
from penstock.sim.read_sets import read_mask
from penstock.sim.scenario import Mode, Scenario
from penstock.trace.skip_trace import SkipTrace, TraceShape

MOST_PAIRS = 20_000  # of item and token step: HiGHS takes about a minute

Term = tuple[float, int]  # coefficient and column


def lb2(scenario: Scenario, trace: SkipTrace, *, free_start: bool = False) -> float:
    """A lower bound, in seconds, for every policy from the scenario's start; `free_start`: from whatever start is best.

    Items may lie in HBM in part, and a token step's moves may be spread over its attention steps as suits it
    (docs/policies.md, Bounds). Raises UserError where the instance is too large for a linear program.
    """
    check_size(trace.shape)
    return _Relaxation(scenario, trace, initial_state(scenario), free_start).least_time_s()


def check_size(shape: TraceShape) -> None:
    """Raise UserError where a trace is too large for a linear program."""
    pairs = shape.layers * shape.steps * (shape.prefill_tokens + shape.tokens - 1) // 2
    if pairs > MOST_PAIRS:
        raise UserError(
            f"LB2 is for small instances: {pairs:,} pairs of item and token step, at most {MOST_PAIRS:,}; "
            "shorten the lengths, or use LB1"
        )


@dataclass
class _Program:
    """Columns from `lower` to `upper`, and rows of terms between two limits: minimise what the columns cost."""

    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    rows: list[tuple[Sequence[Term], float, float]] = field(default_factory=list)

    def column(self, lower: float = 0.0, upper: float = np.inf, cost: float = 0.0) -> int:
        """A new column's index."""
        self.lower.append(lower)
        self.upper.append(upper)
        self.cost.append(cost)
        return len(self.cost) - 1

    def at_most(self, limit: float, *terms: Term) -> None:
        """The terms' sum is at most `limit`."""
        self.rows.append((terms, -np.inf, limit))

    def equal(self, value: float, *terms: Term) -> None:
        """The terms' sum is `value`."""
        self.rows.append((terms, value, value))

    def least(self) -> float:
        """The least cost, by HiGHS."""
        values = [value for terms, _, _ in self.rows for value, _ in terms]
        columns = [column for terms, _, _ in self.rows for _, column in terms]
        row_of = np.repeat(np.arange(len(self.rows)), [len(terms) for terms, _, _ in self.rows])
        matrix = csr_array((values, (row_of, columns)), shape=(len(self.rows), len(self.cost)))
        limits = [low for _, low, _ in self.rows], [high for _, _, high in self.rows]
        found = milp(self.cost, constraints=LinearConstraint(matrix, *limits), bounds=Bounds(self.lower, self.upper))
        if found.status != 0:
            raise RuntimeError(f"HiGHS found no optimum of LB2: {found.message}")
        return float(found.fun)


@dataclass(frozen=True)
class _Moves:
    """Columns of what one token step moves, in items; each list sums to a kind of bytes."""

    hbm_read: list[int] = field(default_factory=list)
    hbm_written: list[int] = field(default_factory=list)
    ext_read: list[int] = field(default_factory=list)
    ext_written: list[int] = field(default_factory=list)

    def kinds(self) -> tuple[list[int], ...]:
        return self.hbm_read, self.hbm_written, self.ext_read, self.ext_written


class _Relaxation:
    """The program of one instance. Bytes are counted in items, and time in that of one from HBM: numbers stay small."""

    def __init__(self, scenario: Scenario, trace: SkipTrace, start: InitialState, free_start: bool) -> None:
        self.scenario = scenario
        self.start = start
        self.inclusive = scenario.mode is Mode.INCLUSIVE
        self.unit_s = scenario.kv_bytes / scenario.memories.hbm_bytes_per_s
        self.read = read_mask(trace)
        self.program = _Program()
        self.constant_s = self._mlp_s() * len(self.read)
        self._state = self._first_state(free_start)
        for step in range(len(self.read)):
            self._token_step(step)

    def least_time_s(self) -> float:
        return self.constant_s + self.unit_s * self.program.least()

    def _mlp_s(self) -> float:
        """The MLP steps of a token step: they read weights, and nothing can be moved in them."""
        scenario, memories = self.scenario, self.scenario.memories
        held = self.start.mlp_bytes
        memory_s = np.maximum(held / memories.hbm_bytes_per_s, (scenario.mlp_bytes - held) / memories.ext_bytes_per_s)
        return float(np.maximum(memory_s, scenario.compute_s).sum()) + scenario.layers * scenario.fixed_s

    def _first_state(self, free_start: bool) -> dict[tuple[int, int], int]:
        """Columns of the parts of prefill items in HBM, by (token, layer)."""
        lies = self.start.items  # [layers, prefill tokens]
        state = {
            (token, layer): self.program.column(
                lower=0.0 if free_start else float(lies[layer, token]),
                upper=1.0 if free_start else float(lies[layer, token]),
            )
            for token in range(self.scenario.prefill_tokens)
            for layer in range(self.scenario.layers)
        }
        self._hold_capacity(state.values())
        return state

    def _hold_capacity(self, parts: Iterable[int]) -> None:
        self.program.at_most(self.start.slots, *((1.0, part) for part in parts))

    def _token_step(self, step: int) -> None:
        token = self.scenario.prefill_tokens + step
        from_hbm: list[list[int]] = [[] for _ in range(self.scenario.layers)]
        moves = _Moves()
        after = {}
        for (t, layer), before in self._state.items():
            is_read = bool(self.read[step, layer, t])
            after[t, layer], y = self._item(before, is_read, moves)
            if y is not None:
                from_hbm[layer].append(y)
        placed = []
        for layer in range(self.scenario.layers):
            placed.append(self.program.column(upper=1.0))
            after[token, layer], _ = self._item(placed[layer], False, moves)
        self._state = after
        self._hold_capacity(after.values())
        spread: list[list[int]] = []
        for layer in range(self.scenario.layers):
            spread.append([self.program.column() for _ in moves.kinds()])
            self._attention_time(layer, from_hbm[layer], placed[layer], spread[layer])
        for kind, parts in enumerate(moves.kinds()):
            shares = ((-1.0, of_layer[kind]) for of_layer in spread)
            self.program.at_most(0.0, *((1.0, part) for part in parts), *shares)

    def _item(self, before: int, is_read: bool, moves: _Moves) -> tuple[int, int | None]:
        """An item's token step: the columns of its part in HBM afterwards, and of what is read of it there."""
        program = self.program
        after, come, gone = program.column(upper=1.0), program.column(), program.column()
        program.equal(0.0, (1.0, after), (-1.0, before), (-1.0, come), (1.0, gone))
        moves.hbm_written.append(come)
        if not self.inclusive:
            moves.ext_written.append(gone)
        if not is_read:
            moves.ext_read.append(come)
            if not self.inclusive:
                moves.hbm_read.append(gone)
            return after, None
        y, fetched = program.column(upper=1.0), program.column()
        moves.ext_read.append(fetched)
        program.at_most(0.0, (1.0, y), (-1.0, before), (-1.0, come))
        program.at_most(0.0, (1.0, y), (-1.0, before), (-1.0, fetched))
        program.at_most(1.0, (1.0, come), (1.0, y), (-1.0, fetched))
        if not self.inclusive:
            copied = program.column()
            moves.hbm_read.append(copied)
            program.at_most(0.0, (1.0, gone), (-1.0, y), (-1.0, copied))
            program.at_most(0.0, (1.0, before), (-1.0, gone), (-1.0, y))
        return after, y

    def _attention_time(self, layer: int, from_hbm: list[int], placed: int, moved: list[int]) -> None:
        """T of a layer's attention step, at least each of the terms that it is the largest of."""
        scenario, memories = self.scenario, self.scenario.memories
        item, held = scenario.kv_bytes, int(self.start.attn_bytes[layer])
        hbm_moved_out, hbm_moved_in, ext_moved_in, ext_moved_out = moved
        hbm = _Sum([(1.0, column) for column in (*from_hbm, placed, hbm_moved_out, hbm_moved_in)], held / item)
        ext_read = _Sum(
            [(-1.0, column) for column in from_hbm] + [(1.0, ext_moved_in)],
            (scenario.attn_bytes - held) / item + len(from_hbm),
        )
        written = [(1.0, ext_moved_out)] if self.inclusive else [(1.0, ext_moved_out), (-1.0, placed)]
        ext_write = _Sum(written, 1.0)
        ext_all = ext_read + ext_write
        rate = memories.hbm_bytes_per_s
        read_rate = rate / memories.ext_read_bytes_per_s
        terms = [hbm, ext_all.times(rate / memories.ext_internal_bytes_per_s)]
        match memories.duplex:
            case Duplex.FULL:
                terms += [ext_read.times(read_rate), ext_write.times(rate / memories.ext_write_bytes_per_s)]
            case Duplex.HALF:
                terms += [ext_all.times(read_rate)]
            case Duplex.SERIAL:
                terms += [ext_read.times(read_rate) + ext_write.times(rate / memories.ext_write_bytes_per_s)]
        longest = self.program.column(lower=scenario.compute_s / self.unit_s, cost=1.0)
        self.constant_s += scenario.fixed_s
        for term in terms:
            self.program.at_most(-term.constant, *term.terms, (-1.0, longest))


@dataclass(frozen=True)
class _Sum:
    """A linear expression."""

    terms: Sequence[Term]
    constant: float

    def __add__(self, other: "_Sum") -> "_Sum":
        return _Sum([*self.terms, *other.terms], self.constant + other.constant)

    def times(self, factor: float) -> "_Sum":
        return _Sum([(factor * value, column) for value, column in self.terms], factor * self.constant)
