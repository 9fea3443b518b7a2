"""What a person may call a model, told without looking into files or at the hub."""

import re
from pathlib import Path

from penstock.errors import UserError

DEMO = "demo"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def check_name(model: str) -> None:
    """Raise UserError for a name that is neither of something that is there nor one that the hub could know."""
    path = Path(model).expanduser()
    if model == DEMO or path.exists():
        return
    if path.suffix.lower() == ".gguf":
        raise UserError(f"{path} does not exist.")
    if not _HUB_ID.fullmatch(model):
        raise UserError(f"{model} does not exist, and is no hub id such as Qwen/Qwen3-0.6B.")
