"""Penstock: language-model generation on memory that is too small for it."""

import importlib
from typing import TYPE_CHECKING, Any

from penstock.errors import UserError

if TYPE_CHECKING:
    from penstock.llm import LLM
    from penstock.sampling import SamplingParams

__all__ = ["LLM", "SamplingParams", "UserError"]
__version__ = "0.1.0"

_WHERE = {"LLM": "penstock.llm", "SamplingParams": "penstock.sampling"}


def __getattr__(name: str) -> Any:
    """Import torch and transformers only when what needs them is asked for."""
    if name not in _WHERE:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
