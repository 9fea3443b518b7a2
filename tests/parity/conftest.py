"""Tiny checkpoints and their reference answers, made once; a count of near-ties for the terminal's summary."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity import families
from tests.parity.reference import ROUNDING, Answer, generate, near_ties

LENGTHS = (17, 5, 26, 9, 12, 30)  # below, across and above every window, chunk and switch of the families
NEW_TOKENS = 6


@dataclass(frozen=True)
class Subject:
    """A tiny model: its checkpoint, and what transformers answers to prompts of all lengths."""

    name: str
    path: Path
    model: Any
    answers: list[Answer]

    @property
    def prompts(self) -> list[list[int]]:
        """The prompts of the answers."""
        return [answer.prompt for answer in self.answers]


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    """The subject of a family."""

    @cache
    def made(name: str) -> Subject:
        if why := families.refused(name):
            pytest.skip(why)
        model = families.build(name)
        path = tmp_path_factory.mktemp("subjects") / name
        model.save_pretrained(path)
        draw = torch.Generator().manual_seed(1)
        prompts = [torch.randint(3, families.VOCABULARY, (n,), generator=draw).tolist() for n in LENGTHS]
        return Subject(name, path, model, [generate(model, prompt, NEW_TOKENS) for prompt in prompts])

    return made


@pytest.fixture
def compare(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Assert that tokens and logits are the answers'; near-ties are counted, and told at the end of the session."""

    def compared(
        answers: Sequence[Answer], tokens: Sequence[Sequence[int]], logits: Any, rounding: float = ROUNDING
    ) -> None:
        parted = sum(
            near_ties(a, t, logits[row], rounding) for row, (a, t) in enumerate(zip(answers, tokens, strict=True))
        )
        record_property("near_ties", (parted, sum(len(a.tokens) for a in answers)))

    return compared
