"""Policies' options: what each takes, and how they are read from `name:key=value,key`."""

from dataclasses import dataclass
from fractions import Fraction

from penstock.errors import UserError

Value = bool | int | str | Fraction | None


@dataclass(frozen=True)
class Option:
    """One option; its default's type says what it takes: a flag, a whole number from 1, a word of `choices`, a share.

    A share's default is None where the scenario gives it.
    """

    name: str
    default: Value
    choices: tuple[str, ...] = ()

    @property
    def takes(self) -> str:
        """How it is written."""
        if isinstance(self.default, bool):
            return self.name
        if self.choices:
            return f"{self.name}={'|'.join(self.choices)}"
        return f"{self.name}={'N' if isinstance(self.default, int) else 'SHARE'}"

    def read(self, policy: str, text: str | None) -> Value:
        """Its value from what stands after `=` (None: nothing does)."""
        wrong = UserError(f"{policy}: {self.name}={text or ''} is not an option: write {self.takes}")
        if isinstance(self.default, bool):
            if text not in (None, "true", "false"):
                raise wrong
            return text != "false"
        if text is None:
            raise wrong
        if self.choices:
            if text not in self.choices:
                raise wrong
            return text
        try:
            number = int(text) if isinstance(self.default, int) else Fraction(text)
        except (ValueError, ZeroDivisionError):
            raise wrong from None
        if isinstance(number, int) and not isinstance(self.default, int):
            number = Fraction(number)
        if number < 1 if isinstance(self.default, int) else not 0 <= number <= 1:
            least = "a whole number from 1" if isinstance(self.default, int) else "a share from 0 to 1"
            raise UserError(f"{policy}: {self.name}={text}: {least} is needed")
        return number


def split_name(text: str) -> tuple[str, list[tuple[str, str | None]]]:
    """`name:key=value,flag` as its name and its options in order; a value is None where none is given."""
    name, _, rest = text.partition(":")
    parts = [part.strip() for part in rest.split(",") if part.strip()]
    pairs = [part.partition("=") for part in parts]
    return name.strip(), [(key.strip(), value.strip() if equals else None) for key, equals, value in pairs]


def read_options(policy: str, options: tuple[Option, ...], given: list[tuple[str, str | None]]) -> dict[str, Value]:
    """The values of the options given. Raises UserError for one that does not exist, naming those that do."""
    known = {option.name: option for option in options}
    values: dict[str, Value] = {}
    for name, text in given:
        if name in values:
            raise UserError(f"{policy} has the option {name} twice: leave one out")
        if name not in known:
            have = f"it takes {', '.join(o.takes for o in options)}" if options else "it takes none"
            raise UserError(f"{policy} has no option {name!r}: {have}")
        values[name] = known[name].read(policy, text)
    return values
