"""What can go wrong in a job: one line of its input, or all of it."""

from collections import Counter


class JobStopped(Exception):
    """Something besides the person stopped a job, which can be resumed: its text is one line, the exit status is 1."""


class Fault(Exception):
    """Why a line cannot be run. code: ``invalid_json``, ``invalid_request``, ``unsupported``, …; reason: one line."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = one_line(reason)


class Tally:
    """Error lines by code. counts: how many there are; first: the number of the first line, as far as they were met."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, int] = {}

    @property
    def total(self) -> int:
        """Error lines of all codes."""
        return self.counts.total()

    def add(self, code: str, line: int) -> None:
        """Count an error line in."""
        self.counts[code] += 1
        self.first[code] = min(line, self.first.get(code, line))

    def copy(self) -> "Tally":
        """One that goes on by itself."""
        other = Tally()
        other.counts, other.first = Counter(self.counts), dict(self.first)
        return other


def one_line(text: str, most: int = 200) -> str:
    """The text fit for a message: at most that many characters, printable ones, no line ends."""
    printable = "".join(character if character.isprintable() else " " for character in text[: 4 * most])
    words = " ".join(printable.split())
    return words if len(words) <= most and len(text) <= 4 * most else words[: most - 1] + "…"
