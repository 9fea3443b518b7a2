"""Values of a scenario file, read one by one; ValueError says what is allowed."""

import re
from fractions import Fraction
from typing import Literal

from penstock.errors import UserError
from penstock.machine import quantities
from penstock.units import parse_bytes

_MOST = 2**62
_PREFIX_ALONE = re.compile(r"([\d.]+)\s*([kKMGTP])i?")


def read_size(given: object) -> int:
    """A number of bytes above zero: a whole number, or text with a unit."""
    nbytes = read_amount(given)
    if nbytes == 0:
        raise ValueError(_SIZES)
    return nbytes


def read_amount(given: object) -> int:
    """A number of bytes, zero too."""
    if isinstance(given, str):
        return _written_size(given)
    number = _whole(given)
    if number is None:
        raise ValueError(_SIZES)
    return number


def read_rate(given: object) -> int:
    """Whole bytes per second above zero: a number, or text with a unit."""
    if isinstance(given, str) and (match := _PREFIX_ALONE.fullmatch(given.strip())):
        raise ValueError(f"its unit is not whole: write {match[1]} {match[2]}B/s")
    rate = quantities.BANDWIDTH.read(given)
    if not rate.is_integer() or rate > _MOST:
        raise ValueError('give whole bytes per second, such as "900 GB/s" or 900000000000')
    return int(rate)


def read_seconds(given: object) -> float:
    """Zero or more seconds."""
    return quantities.SECONDS.read(given)


def read_share(given: object) -> Fraction:
    """A part of a whole, exactly as written: 0.8 is 4/5."""
    allowed = "give a number from 0 to 1, such as 0.8, or a fraction in quotes, such as '4/5'"
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise ValueError(allowed)
    try:
        share = Fraction(str(given))
    except (ValueError, ZeroDivisionError):
        raise ValueError(allowed) from None
    if not 0 <= share <= 1:
        raise ValueError(allowed)
    return share


def read_omega(given: object) -> Fraction | Literal["fit"]:
    """The share of weights in HBM, or what fits beside the prefill KV."""
    if given == "fit":
        return "fit"
    try:
        return read_share(given)
    except ValueError:
        raise ValueError("give a number from 0 to 1, such as 0.8, or 'fit': what the prefill KV leaves") from None


def read_level(given: object) -> float:
    """A number from 0 to 1."""
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= 1:
        raise ValueError("give a number from 0 to 1, such as 0.3")
    return float(given)


def read_levels(given: object) -> tuple[float, ...]:
    """Skip levels: one or more numbers from 0 to 1, each once."""
    listed = given if isinstance(given, list | tuple) else [given]
    try:
        levels = tuple(read_level(level) for level in listed)
    except ValueError:
        levels = ()
    if not levels or len(set(levels)) < len(levels):
        raise ValueError("give different numbers from 0 to 1, such as [0, 0.3, 0.6]")
    return levels


def read_count(given: object) -> int:
    """A whole number above zero."""
    number = _whole(given)
    if not number:
        raise ValueError("give a whole number above 0")
    return number


def read_whole(given: object) -> int:
    """A whole number, zero too."""
    number = _whole(given)
    if number is None:
        raise ValueError("give a whole number, 0 or above")
    return number


def read_skip_sets(given: object) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """[step][layer]: lists of token ids."""
    if isinstance(given, int | float | str):
        raise ValueError("it is for the sets themselves, [step][layer] → token ids; a level is skip_levels = [0.3]")
    if not isinstance(given, list):
        raise ValueError("give lists of token ids by step and layer: [[[0, 3], []], …]")
    return tuple(
        tuple(_ids(ids, f"skip[{step}][{layer}]") for layer, ids in enumerate(_listed(layers, f"skip[{step}]")))
        for step, layers in enumerate(given)
    )


def check_skip_sets(
    sets: tuple[tuple[tuple[int, ...], ...], ...], prefill_tokens: int, decode_tokens: int, layers: int
) -> None:
    """ValueError unless there is a set of existing tokens for each step and layer."""
    if len(sets) != decode_tokens:
        raise ValueError(f"skip has {len(sets):,} steps, but decode_tokens is {decode_tokens:,}: give a list for each")
    for step, by_layer in enumerate(sets):
        if len(by_layer) != layers:
            raise ValueError(f"skip[{step}] has {len(by_layer)} layers of {layers}: give a list for each, [] for none")
        exist = prefill_tokens + step
        for layer, ids in enumerate(by_layer):
            if any(token >= exist for token in ids):
                raise ValueError(
                    f"skip[{step}][{layer}] skips token {max(ids)}, but only 0 to {exist - 1} exist then: leave it out"
                )


def _listed(given: object, place: str) -> list[object]:
    if not isinstance(given, list):
        raise ValueError(f"{place} is not a list: give a list of token ids for every layer")
    return given


def _ids(given: object, place: str) -> tuple[int, ...]:
    ids = tuple(token for token in _listed(given, place) if isinstance(token, int) and token >= 0)
    if len(ids) != len(_listed(given, place)) or any(isinstance(token, bool) for token in ids):
        raise ValueError(f"{place} holds what is no token id: give whole numbers, 0 or above")
    return ids


def _written_size(given: str) -> int:
    if match := _PREFIX_ALONE.fullmatch(given.strip()):
        number, prefix = match[1], match[2].upper()
        raise ValueError(f"GB or GiB? write {number} {prefix}B (powers of 1000) or {number} {prefix}iB (of 1024)")
    try:
        nbytes = parse_bytes(given)
    except UserError:
        raise ValueError(_SIZES) from None
    if nbytes > _MOST:
        raise ValueError(_SIZES)
    return nbytes


def _whole(given: object) -> int | None:
    """The number where it is whole and not negative; 7.5e10 is."""
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= _MOST or given != int(given):
        return None
    return int(given)


_SIZES = 'give a size such as "141 GB" (10^9 bytes) or "32 GiB" (2^30), or whole bytes'
