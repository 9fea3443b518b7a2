"""What is still to come of a run, for its progress."""

from collections.abc import Callable, Mapping
from typing import Any

from penstock.encoding import Item
from penstock.engine.engine import SweepReport
from penstock.jobs.request import Parsed
from penstock.jobs.survey import Survey, prompt_bytes
from penstock.report import Account


class Outlook:
    """What is still to come: prompts in all, as far as is known, and tokens that those read so far may generate."""

    def __init__(self, prompts: int) -> None:
        self.prompts = prompts
        self.tokens_left = self._added = 0

    def added(self, item: Item) -> None:
        """A prompt was given to the engine."""
        self.tokens_left += item.sampling.max_tokens
        self._added += 1
        self.prompts = max(self.prompts, self._added)

    def swept(self, sweep: SweepReport) -> None:
        """A sweep was done."""
        self.tokens_left -= len(sweep.drawn)

    def ended(self, item: Item, generated: int) -> None:
        """A row ended with so many tokens."""
        self.tokens_left -= item.sampling.max_tokens - generated

    def seconds_left(self, account: Account, seconds: float) -> float | None:
        """Time until the end at the pace so far, or None where there is none yet."""
        return self.tokens_left * seconds / account.tokens_out if account.tokens_out else None

    def told(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        """The event that tells of a sweep, as it goes out."""
        return event


class JobOutlook(Outlook):
    """What is left of a job: tokens of prompts and answers, by what was read and what rows generated so far.

    ``tell`` sees every event before it goes out.
    """

    def __init__(self, surveyed: Survey, tell: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        super().__init__(surveyed.to_go)
        self._tell = tell
        self._unread_bytes = surveyed.prompt_bytes
        self._read = self._bytes = self._tokens = self._asked = 0  # requests, their prompts, and what they may generate
        self._ended = self._generated = 0  # rows that ended, and the tokens of those
        self._drawn = 0

    @property
    def tokens_a_byte(self) -> float:
        """Tokens of a prompt per byte, of those read so far."""
        return self._tokens / self._bytes if self._bytes else 0.3

    def read(self, parsed: Parsed, item: Item) -> None:
        """A request was read and can run."""
        nbytes = prompt_bytes(parsed.prompt)
        self._unread_bytes -= nbytes
        self._bytes += nbytes
        self._tokens += len(item.ids)
        self._asked += item.sampling.max_tokens
        self._read += 1

    def refused(self, parsed: Parsed) -> None:
        """A request was read and cannot run."""
        self._unread_bytes -= prompt_bytes(parsed.prompt)
        self.prompts -= 1

    def added(self, item: Item) -> None:
        pass

    def swept(self, sweep: SweepReport) -> None:
        self._drawn += len(sweep.drawn)
        # of the rows that ended; while these are few, also of what requests may take
        answer = (self._generated + 8 * self._asked / max(1, self._read)) / (self._ended + 8)
        self.tokens_left = max(0, round(self.prompts * answer) - self._drawn)

    def ended(self, item: Item, generated: int) -> None:
        self._ended += 1
        self._generated += generated

    def seconds_left(self, account: Account, seconds: float) -> float | None:
        computed = account.prefill_tokens + account.decode_tokens
        begun = account.prefill_tokens + account.shared_tokens
        still = 1 - account.shared_tokens / begun if begun else 1.0  # of a prompt's tokens, those that no other brings
        prompts = max(0.0, self._tokens + self._unread_bytes * self.tokens_a_byte - begun) * still
        return (prompts + self.tokens_left) * seconds / computed if computed else None

    def told(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._tell(event)
