"""What a signal tells a job through."""

from collections.abc import Callable


class Stop:
    """Asked for by a signal, heeded by the job. asked: whether it was."""

    def __init__(self) -> None:
        self.asked = False
        self._halt: Callable[[], None] | None = None

    @property
    def running(self) -> bool:
        """Whether a first sweep is near, so that it pays to wait for its end."""
        return self._halt is not None

    def ask(self) -> None:
        """End after the sweep that is under way."""
        self.asked = True
        if self._halt is not None:
            self._halt()

    def begins(self, halt: Callable[[], None]) -> None:
        """The job's engine is there; ``halt`` ends it after its sweep."""
        self._halt = halt
