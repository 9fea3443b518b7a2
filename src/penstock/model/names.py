"""What a person may call a model, told without looking into files or at the hub."""

import re
from pathlib import Path

from penstock.errors import UserError, first_line

DEMO = "demo"
_SHOWN = 80  # letters of a name that cannot be one
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def check_name(model: str) -> None:
    """Raise UserError for a name that is neither of something that is there nor one that the hub could know."""
    try:
        path = Path(model).expanduser()
        there = path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long; of a user that there is none of; a null byte
        raise UserError(
            f"{model[:_SHOWN]} is no name of a model: {getattr(error, 'strerror', None) or first_line(error)}"
        ) from error
    if not model:
        raise UserError("a model has a name: give a directory, a GGUF file, a hub id, or demo")
    if model == DEMO or there:
        return
    if path.suffix.lower() == ".gguf":
        raise UserError(f"{path} does not exist.")
    if not _HUB_ID.fullmatch(model):
        raise UserError(f"{model} does not exist, and is no hub id such as Qwen/Qwen3-0.6B.")
