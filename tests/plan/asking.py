"""A question as people say it: what of the policy is fixed among the rest."""

from dataclasses import fields
from typing import Any

from penstock.plan.question import Question
from penstock.plan.types import Asked


def asking(**said: Any) -> Question:
    """The question that says so."""
    fixed = {field.name: said.pop(field.name) for field in fields(Asked) if field.name in said}
    return Question(**said, asked=Asked(**fixed))
