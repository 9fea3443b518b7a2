"""What a person asks of a job, and what its first run makes of that for all later ones."""

from dataclasses import asdict, dataclass

from penstock.jobs.job import Settings
from penstock.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person asks of a job; settings where None come from the stored job, or hold their usual value."""

    params: SamplingParams
    chat: bool | None = None
    overwrite: bool = False
    retry_errors: bool = False

    def said(self) -> Settings:
        """The settings, as they are stored; None where nothing was said."""
        stop_ids = self.params.stop_token_ids
        stop = [self.params.stop] if isinstance(self.params.stop, str) else self.params.stop
        lists = {"stop": stop and list(stop), "stop_token_ids": stop_ids and list(stop_ids)}
        return {**asdict(self.params), **lists, "chat": self.chat}


@dataclass(frozen=True, slots=True)
class Terms:
    """What a job's answers depend on besides their requests, as its first run settled it."""

    settings: Settings

    @property
    def params(self) -> SamplingParams:
        """What holds where a line says nothing."""
        return SamplingParams(**{name: self.settings.get(name) for name in asdict(SamplingParams())})

    @property
    def chat(self) -> bool:
        """Whether plain prompts go through the chat template."""
        return self.settings.get("chat") is not False

    @property
    def fingerprint(self) -> str:
        """All of them in one text."""
        return repr(sorted(self.settings.items()))
