"""What can go wrong in a job: one line of its input, or all of it."""


class JobStopped(Exception):
    """Something besides the person stopped a job, which can be resumed: its text is one line, the exit status is 1."""


class Fault(Exception):
    """Why a line cannot be run. code: ``invalid_json``, ``invalid_request``, ``unsupported``, …; reason: one line."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = one_line(reason)


def one_line(text: str, most: int = 200) -> str:
    """The text fit for a message: at most that many characters, printable ones, no line ends."""
    printable = "".join(character if character.isprintable() else " " for character in text[: 4 * most])
    words = " ".join(printable.split())
    return words if len(words) <= most and len(text) <= 4 * most else words[: most - 1] + "…"
