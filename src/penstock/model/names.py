"""What a person may call a model, told without looking into files or at the hub."""

import re
from pathlib import Path

from penstock.errors import UserError, first_line

DEMO = "demo"
_SHOWN = 80  # letters of a name that cannot be one
_PART = r"\b[\w.-]{1,96}\b"
_HUB_ID = re.compile(rf"(?!.*(--|\.\.|\.git$))({_PART}/)?{_PART}", re.ASCII)  # as the hub has it


def check_name(model: str) -> None:
    """Raise UserError for a name that is neither of something that is there nor one that the hub could know."""
    if not model:
        raise UserError("a model has a name: give a directory, a GGUF file, a hub id, or demo")
    try:
        path = Path(model).expanduser()
        there = path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long; of a user that there is none of; a null byte
        raise UserError(
            f"{_shown(model)} is no name of a model: {getattr(error, 'strerror', None) or first_line(error)}"
        ) from error
    if model == DEMO or there:
        return
    if path.suffix.lower() == ".gguf":
        raise UserError(f"{_shown(model)} does not exist.")
    if not _HUB_ID.fullmatch(model):
        raise UserError(f"{_shown(model)} does not exist, and is no hub id such as Qwen/Qwen3-0.6B.")


def _shown(model: str) -> str:
    """The beginning of a name, in one line."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in model[:_SHOWN])
