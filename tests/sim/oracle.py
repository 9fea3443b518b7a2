"""docs/policies.md played event by event on sets of items: what the fast simulators are compared to.

Written from that page alone. Nothing is shared with penstock.sim and nothing here is fast: an item is a pair
(token, layer), HBM is a set of them, shares are fractions, and every step looks at all there is.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from math import floor
from typing import Any

Item = tuple[int, int]
Move = tuple[list[Item], list[Item]]  # outs and ins that are made together or not at all


@dataclass(frozen=True)
class Case:
    """A scenario in whole bytes, bytes per second and seconds; `skipped[i][l]` is S(prefill + i, l)."""

    skipped: Sequence[Sequence[frozenset[int]]]
    layers: int
    prefill: int
    attn_bytes: int
    mlp_bytes: int
    kv_bytes: int
    capacity: int
    b_h: int
    b_r: int
    b_w: int
    b_int: int
    duplex: str = "full"
    mode: str = "exclusive"
    passive: str = "off"
    start: str = "hbm"
    omega: Fraction | None = None
    phi: Fraction | None = None
    weight_order: str = "uniform"
    compute_s: float = 0.0
    fixed_s: float = 0.0

    @property
    def last(self) -> int:
        return self.prefill + len(self.skipped) - 1

    @property
    def best_share(self) -> Fraction:
        return Fraction(self.b_h, self.b_h + min(self.b_r, self.b_int))

    def skips(self, n: int, layer: int) -> frozenset[int]:
        return self.skipped[n - self.prefill][layer]

    @cached_property
    def all_reads(self) -> list[list[frozenset[int]]]:
        return [
            [frozenset(range(self.prefill + i)) - skipped for skipped in of_layers]
            for i, of_layers in enumerate(self.skipped)
        ]

    def reads(self, n: int, layer: int) -> frozenset[int]:
        return self.all_reads[n - self.prefill][layer]

    def ahead(self, n: int, window: int) -> range:
        return range(n + 1, min(n + window, self.last) + 1)

    def back(self, n: int, window: int) -> range:
        return range(max(n - window + 1, self.prefill), n + 1)


@dataclass
class Bytes:
    """What one (n, l, s) reads, writes and moves."""

    r_h: int = 0
    r_e: int = 0
    w_h: int = 0
    w_e: int = 0
    m_hr: int = 0
    m_hw: int = 0
    m_er: int = 0
    m_ew: int = 0


@dataclass(frozen=True)
class Step:
    """One (n, l, s) as it went."""

    n: int
    layer: int
    sublayer: int
    bytes: Bytes
    time_s: float
    binding: str
    hbm_items: int
    kv_read: int = 0
    kv_hbm_read: int = 0


@dataclass
class Account:
    """All steps, and the most bytes that HBM held at the start or at the end of a step."""

    steps: list[Step] = field(default_factory=list)
    peak_bytes: int = 0


class Refused(Exception):
    """The weights do not fit HBM."""


def half_up(x: Fraction) -> int:
    return floor(x + Fraction(1, 2))


def play(
    case: Case,
    placement: str,
    migration: str,
    placement_options: dict[str, Any] | None = None,
    migration_options: dict[str, Any] | None = None,
    budget_slack: bool = False,
) -> Account:
    return Player(case, placement, migration, placement_options or {}, migration_options or {}, budget_slack).play()


class Player:
    def __init__(
        self,
        case: Case,
        placement: str,
        migration: str,
        p_options: dict[str, Any],
        m_options: dict[str, Any],
        slack: bool,
    ) -> None:
        self.case, self.slack = case, slack
        self.place: Callable[[int, int], bool] = getattr(self, "place_" + placement.replace("-", "_"))
        self.moves: Callable[[int, int], Iterable[Move]] = getattr(self, "move_" + migration.replace("-", "_"))
        self.p_options, self.m_options = p_options, m_options
        self.passive = {"lru": "all", "belady": "off"}.get(migration, case.passive)
        self.inclusive = case.mode == "inclusive"
        self.w_a, self.w_m = self.weights_in_hbm()
        held = sum(self.w_a) + sum(self.w_m)
        if held > case.capacity:
            raise Refused
        self.weights_held = held
        self.slots = (case.capacity - held) // case.kv_bytes
        self.hbm: set[Item] = set()
        self.used_at: dict[Item, tuple[int, int]] = {}
        self.rates: dict[int, Fraction] = {}
        self.deal_prefill()

    # ---- the start

    def weights_in_hbm(self) -> tuple[list[int], list[int]]:
        case = self.case
        omega = case.best_share if case.start == "ratio" else Fraction(1) if case.omega is None else case.omega
        if case.weight_order == "uniform":
            return [floor(omega * case.attn_bytes)] * case.layers, [floor(omega * case.mlp_bytes)] * case.layers
        left = floor(omega * case.layers * (case.attn_bytes + case.mlp_bytes))
        w_a, w_m = [], []
        for _ in range(case.layers):
            for held, size in ((w_a, case.attn_bytes), (w_m, case.mlp_bytes)):
                held.append(min(size, left))
                left -= held[-1]
        return w_a, w_m

    def deal_prefill(self) -> None:
        case = self.case
        share = {"hbm": Fraction(1), "ratio": case.best_share, "fraction": case.phi}[case.start]
        assert share is not None
        for t in range(case.prefill):
            for layer in range(case.layers):
                self.used_at[t, layer] = (-1, -1)
                if floor((t + 1) * share) > floor(t * share) and len(self.hbm) < self.slots:
                    self.hbm.add((t, layer))

    # ---- the steps

    def play(self) -> Account:
        account = Account(peak_bytes=self.occupancy())
        for n in range(self.case.prefill, self.case.last + 1):
            for layer in range(self.case.layers):
                account.steps.append(self.attention(n, layer))
                account.steps.append(self.mlp(n, layer))
                assert len(self.hbm) <= self.slots and self.occupancy() <= self.case.capacity
                account.peak_bytes = max(account.peak_bytes, self.occupancy())
        return account

    def mlp(self, n: int, layer: int) -> Step:
        counted = Bytes(r_h=self.w_m[layer], r_e=self.case.mlp_bytes - self.w_m[layer])
        return Step(n, layer, 1, counted, *self.time(counted), len(self.hbm))

    def attention(self, n: int, layer: int) -> Step:
        case, k = self.case, self.case.kv_bytes
        read = {(t, layer) for t in case.reads(n, layer)}
        self.read_h, self.read_e = read & self.hbm, read - self.hbm
        for item in read:
            self.used_at[item] = (n, layer)
        self.gone: set[Item] = set()
        self.come: set[Item] = set()
        b = self.bytes = Bytes(
            r_h=self.w_a[layer] + k * len(self.read_h),
            r_e=case.attn_bytes - self.w_a[layer] + k * len(self.read_e),
        )
        self.kept = 0
        if self.slack:
            to_hbm = self.places_in_hbm(n, layer)
            self.kept = int(to_hbm)
            self.count_new(to_hbm)
            self.split()
            self.allowed_s = self.time(b)[0]
            self.make_moves(n, layer)
        else:
            self.make_moves(n, layer)
            to_hbm = self.places_in_hbm(n, layer)
            self.count_new(to_hbm)
            self.split()
        self.kept = 0
        self.used_at[n, layer] = (n, layer)
        if to_hbm:
            self.hbm.add((n, layer))
        return Step(n, layer, 0, b, *self.time(b), len(self.hbm), len(read), len(self.read_h))

    def places_in_hbm(self, n: int, layer: int) -> bool:
        return self.place(n, layer) and self.free() > 0

    def count_new(self, to_hbm: bool) -> None:
        self.bytes.w_h = self.case.kv_bytes if to_hbm else 0
        self.bytes.w_e = self.case.kv_bytes if self.inclusive or not to_hbm else 0

    def split(self) -> None:
        if not self.inclusive:
            return
        b, most = self.bytes, self.case.kv_bytes * len(self.read_h)

        def duration(x: int) -> Fraction:
            t_h = Fraction(b.r_h - x + b.w_h + b.m_hr + b.m_hw, self.case.b_h)
            r, w = Fraction(b.r_e + x + b.m_er), Fraction(b.w_e + b.m_ew)
            c = self.case
            interface = {
                "full": max(r / c.b_r, w / c.b_w),
                "half": (r + w) / c.b_r,
                "serial": r / c.b_r + w / c.b_w,
            }[c.duplex]
            return max(t_h, interface, (r + w) / c.b_int)

        low, high = 0, most  # it falls, and then rises: the least is in between
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if duration(middle + 1) < duration(middle) else (low, middle)
        b.r_h -= low
        b.r_e += low

    def time(self, b: Bytes) -> tuple[float, str]:
        c = self.case
        r, w = b.r_e + b.m_er, b.w_e + b.m_ew
        terms = {"hbm": (b.r_h + b.w_h + b.m_hr + b.m_hw) / c.b_h, "ext-read": 0.0, "ext-write": 0.0}
        if c.duplex == "full":
            terms["ext-read"], terms["ext-write"] = r / c.b_r, w / c.b_w
        elif c.duplex == "half":
            terms["ext-read"] = (r + w) / c.b_r
        else:
            terms["ext-read" if r / c.b_r >= w / c.b_w else "ext-write"] = r / c.b_r + w / c.b_w
        terms["ext-internal"] = (r + w) / c.b_int
        terms["compute"] = c.compute_s
        binding = max(terms, key=lambda name: terms[name])
        return terms[binding] + c.fixed_s, binding

    def occupancy(self) -> int:
        return self.weights_held + self.case.kv_bytes * len(self.hbm)

    # ---- moving

    def free(self) -> int:
        return self.slots - self.kept - len(self.hbm)

    def make_moves(self, n: int, layer: int) -> None:
        for outs, ins in self.moves(n, layer):
            self.try_move(outs, ins)
        self.install_passively(n, layer)

    def try_move(self, outs: list[Item], ins: list[Item]) -> bool:
        """Make these moves together; False where a slot is missing or, with a slack budget, T would grow."""
        b, k = self.bytes, self.case.kv_bytes
        if ins and self.free() + len(outs) < len(ins):
            return False
        before = (b.m_hr, b.m_hw, b.m_er, b.m_ew)
        for item in outs:
            assert item in self.hbm
            if not self.inclusive:
                b.m_ew += k
                b.m_hr += 0 if item in self.read_h else k
        for item in ins:
            assert item not in self.hbm and item not in self.gone and item in self.used_at
            b.m_hw += k
            b.m_er += 0 if item in self.read_e else k
        if self.slack and self.time(b)[0] > self.allowed_s:
            b.m_hr, b.m_hw, b.m_er, b.m_ew = before
            return False
        self.hbm -= set(outs)
        self.gone |= set(outs)
        self.hbm |= set(ins)
        self.come |= set(ins)
        return True

    def install_passively(self, n: int, layer: int) -> None:
        if self.passive == "off":
            return
        case, k = self.case, self.case.kv_bytes
        whole = case.attn_bytes + k * len(case.reads(n, layer))
        installed = 0
        for item in sorted(self.read_e - self.hbm, reverse=True):
            served = self.w_a[layer] + k * (len(self.read_h) + installed)
            if self.passive == "alpha" and not Fraction(served, whole) < case.best_share:
                break
            outs: list[Item] = []
            if self.free() <= 0:
                left_alone = self.read_h | self.read_e | self.come
                victims = [(self.used_at[i], i) for i in self.hbm if i not in left_alone]
                if not victims:
                    break
                outs = [min(victims)[1]]
            installed += self.try_move(outs, [item])

    # ---- placement: True is HBM

    def place_prefer_hbm(self, n: int, layer: int) -> bool:
        return True

    def place_split_token(self, n: int, layer: int) -> bool:
        layers = self.case.layers
        place = (layer + n) % layers if self.p_options.get("rotated", False) else layer
        return place < half_up(layers * self.case.best_share)

    def place_batch_ratio(self, n: int, layer: int) -> bool:
        return (n - self.case.prefill) % 16 < half_up(16 * self.case.best_share)

    def place_look_ahead_batch(self, n: int, layer: int) -> bool:
        window = self.case.ahead(n, self.p_options.get("window", 16))
        if not window:
            return True
        count = sum(n in self.case.skips(m, layer) for m in window)
        rule = self.p_options.get("rule", "half")
        return not {"half": 2 * count >= len(window), "any": count > 0, "all": count == len(window)}[rule]

    def place_layer_importance(self, n: int, layer: int) -> bool:
        window = self.case.back(n, self.p_options.get("window", 64))
        rates = [Fraction(len(self.case.skips(m, layer)), m) if m else Fraction(0) for m in window]
        self.rates[layer] = sum(rates, Fraction(0)) / len(rates)
        mean = sum(self.rates.values(), Fraction(0)) / len(self.rates)
        return not self.rates[layer] > mean * (1 + Fraction(1, 10**9))

    def place_alpha_layers(self, n: int, layer: int) -> bool:
        resident = sum(item[1] == layer for item in self.hbm)
        return not resident > self.case.best_share * n

    # ---- migration

    def above_threshold(self) -> bool:
        return 100 * self.occupancy() > 99 * self.case.capacity

    def of_layer(self, layer: int) -> list[Item]:
        return sorted(item for item in self.hbm if item[1] == layer)

    def of_token(self, t: int) -> list[Item]:
        return sorted(item for item in self.hbm if item[0] == t)

    def outside(self, t: int, n: int, layer: int) -> list[Item]:
        """The items of token t outside HBM that exist in step (n, layer)."""
        exist = range(self.case.layers if t < n else layer if t == n else 0)
        return [(t, other) for other in exist if (t, other) not in self.hbm]

    def move_none(self, n: int, layer: int) -> Iterator[Move]:
        return iter(())

    move_lru = move_none

    def move_prior(self, n: int, layer: int) -> Iterator[Move]:
        if layer == 0 and self.above_threshold():
            tokens = sorted({t for t, _ in self.hbm})[: self.m_options.get("count", 16)]
            for item in [item for t in tokens for item in self.of_token(t)]:
                yield [item], []

    def move_skipped_tokens(self, n: int, layer: int) -> Iterator[Move]:
        if self.above_threshold():
            every = self.m_options.get("layers", "own") == "all"
            skipped = self.case.skips(n, layer)
            for item in sorted(self.hbm):
                if item[0] in skipped and (every or item[1] == layer):
                    yield [item], []

    def move_past_window(self, n: int, layer: int) -> Iterator[Move]:
        window = self.case.back(n, self.m_options.get("window", 16))
        needed = 1 if self.m_options.get("rule", "any") == "any" else len(window)
        for item in self.of_layer(layer):
            if window and sum(item[0] in self.case.skips(m, layer) for m in window) >= needed:
                yield [item], []

    def move_look_ahead(self, n: int, layer: int) -> Iterator[Move]:
        return self.look_ahead(n, layer, 1, whole=True)

    def move_look_ahead_batch(self, n: int, layer: int) -> Iterator[Move]:
        return self.look_ahead(n, layer, self.m_options.get("window", 16), whole=True)

    def move_look_ahead_layer(self, n: int, layer: int) -> Iterator[Move]:
        return self.look_ahead(n, layer, 1, whole=False)

    def move_look_ahead_batch_layer(self, n: int, layer: int) -> Iterator[Move]:
        return self.look_ahead(n, layer, self.m_options.get("window", 16), whole=False)

    def look_ahead(self, n: int, layer: int, length: int, whole: bool) -> Iterator[Move]:
        window = self.case.ahead(n, length)
        if not window:
            return
        read = [self.case.reads(m, layer) for m in window]
        count = {t: sum(t in tokens for tokens in read) for t in range(n + 1)}

        def resident(t: int) -> list[Item]:
            return [item for item in self.of_token(t) if whole or item[1] == layer]

        def absent(t: int) -> list[Item]:
            return [item for item in self.outside(t, n, layer) if whole or item[1] == layer]

        to_leave = [t for t in range(n + 1) if count[t] == 0]
        room = self.m_options.get("room", False)
        if not room:
            for item in [item for t in to_leave for item in resident(t)]:
                yield [item], []
        wanted = sorted((t for t in count if count[t]), key=lambda t: (-count[t], -t))
        for item in [item for t in wanted for item in absent(t)]:
            outs: list[Item] = []
            if self.free() <= 0:
                outs = next((resident(t) for t in to_leave if resident(t)), []) if room else []
                if not outs:
                    return
            yield outs, [item]

    def move_alpha(self, n: int, layer: int) -> Iterator[Move]:
        case, k = self.case, self.case.kv_bytes
        window = case.ahead(n, self.m_options.get("window", 1))
        if not window:
            return
        a = self.m_options.get("target", case.best_share)
        read = {m: case.reads(m, layer) for m in window}
        size = {m: case.attn_bytes + k * len(read[m]) for m in window}
        wanted = {m: min(max(half_up((a * size[m] - self.w_a[layer]) / k), 0), len(read[m])) for m in window}
        held = {m: sum((t, layer) in self.hbm for t in read[m]) for m in window}
        h_star = half_up(Fraction(sum(wanted.values()), len(window)))
        h = half_up(Fraction(sum(held.values()), len(window)))
        if h == h_star:
            return
        predicted = Fraction(sum(self.w_a[layer] + k * held[m] for m in window), sum(size.values()))
        if abs(predicted - a) <= Fraction(1, 200):
            return
        count = {t: sum(t in read[m] for m in window) for t in range(n)}
        if h < h_star:
            candidates = [t for t in range(n) if count[t] and (t, layer) not in self.hbm]
            candidates.sort(key=lambda t: (-count[t], (t, layer) not in self.read_e, -t))
            for t in candidates[: h_star - h]:
                outs: list[Item] = []
                if self.free() <= 0:
                    outs = [item for item in self.of_layer(layer) if count.get(item[0]) == 0][:1]
                    if not outs:
                        return
                yield outs, [(t, layer)]
        elif not self.inclusive:
            residents = [t for t in range(n) if count[t] and (t, layer) in self.hbm]
            for t in sorted(residents, key=lambda t: (count[t], t))[: h - h_star]:
                yield [(t, layer)], []

    # ---- Belady, which decides on the new item with the others

    def next_read(self, item: Item, n: int, layer: int) -> int:
        """The place of the first step after (n, layer) that reads an item; far beyond the last where none does."""
        t, own = item
        first = max(n if own > layer else n + 1, t + 1)
        steps = (m for m in range(first, self.case.last + 1) if t in self.case.reads(m, own))
        return next((m * self.case.layers + own for m in steps), (self.case.last + 1) * self.case.layers)

    def move_belady(self, n: int, layer: int) -> Iterator[Move]:
        def when(item: Item) -> int:
            return self.next_read(item, n, layer)

        new, never = (n, layer), when((self.case.last, 0))
        self.takes_new = False
        wanted = {item for item in self.read_e if when(item) < never} | {new}
        for item in sorted(wanted, key=lambda item: (when(item), -item[0])):
            outs: list[Item] = []
            if self.free() <= 0:
                last = min(self.hbm, key=lambda item: (-when(item), item), default=None)
                if last is None or when(last) <= when(item):
                    return
                outs = [last]
            if item == new:
                yield outs, []
                self.takes_new, self.kept = True, 1
            else:
                yield outs, [item]

    def place_belady(self, n: int, layer: int) -> bool:
        self.kept = 0
        return self.takes_new
