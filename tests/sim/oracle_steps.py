"""What a step of the oracle reads, writes and moves, and how long that takes."""

from dataclasses import dataclass, field
from fractions import Fraction

from tests.sim.oracle_case import Case


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


def time(case: Case, b: Bytes) -> tuple[float, str]:
    """T in seconds, and what binds."""
    r, w = b.r_e + b.m_er, b.w_e + b.m_ew
    terms = {"hbm": (b.r_h + b.w_h + b.m_hr + b.m_hw) / case.b_h, "ext-read": 0.0, "ext-write": 0.0}
    if case.duplex == "full":
        terms["ext-read"], terms["ext-write"] = r / case.b_r, w / case.b_w
    elif case.duplex == "half":
        terms["ext-read"] = (r + w) / case.b_r
    else:
        terms["ext-read" if r / case.b_r >= w / case.b_w else "ext-write"] = r / case.b_r + w / case.b_w
    terms["ext-internal"] = (r + w) / case.b_int
    terms["compute"] = case.compute_s
    binding = max(terms, key=lambda name: terms[name])
    return terms[binding] + case.fixed_s, binding


def split(case: Case, b: Bytes, most: int) -> None:
    """Let up to so many bytes that HBM holds be read from external memory, where that makes the step shorter."""

    def duration(x: int) -> Fraction:
        t_h = Fraction(b.r_h - x + b.w_h + b.m_hr + b.m_hw, case.b_h)
        r, w = Fraction(b.r_e + x + b.m_er), Fraction(b.w_e + b.m_ew)
        interface = {
            "full": max(r / case.b_r, w / case.b_w),
            "half": (r + w) / case.b_r,
            "serial": r / case.b_r + w / case.b_w,
        }[case.duplex]
        return max(t_h, interface, (r + w) / case.b_int)

    low, high = 0, most  # it falls, and then rises: the least is in between
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if duration(middle + 1) < duration(middle) else (low, middle)
    b.r_h -= low
    b.r_e += low
