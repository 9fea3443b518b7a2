"""What of a scenario's numbers is counted exactly."""

from penstock.errors import UserError

MOST = 2**53  # a double holds no more whole numbers


def check_whole(values: object, least: int, *names: str) -> None:
    """Raise UserError for the first of these attributes that is no whole number from `least` to what is exact."""
    for name in names:
        value = getattr(values, name)
        if not isinstance(value, int) or not least <= value < MOST:
            raise UserError(f"{name} is {value!r}: give a whole number from {least} to {MOST - 1:,}")
