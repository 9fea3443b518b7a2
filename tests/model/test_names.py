"""Names that are no model's, told before anything is looked for."""

import pytest

from penstock.errors import UserError
from penstock.model.names import check_name

NONE = ["", "a" * 300, "~nobody-of-that-name/x", "a\0b", "no such model"]
NO_HUB_ID = [
    "a/..",
    "../..a",
    "a/b\n",
    "a\nb",
    "no\nfile.gguf",
    "a/b/c",
    "a/-b",
    "a--b",
    "a/b.",
    "a/b.git",
    "é/b",
    "/a",
]


@pytest.mark.parametrize("name", NONE + NO_HUB_ID)
def test_what_cannot_be_a_model_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError) as refusal:
        check_name(name)
    told = str(refusal.value)
    assert len(told) < 200 and told.isprintable()


@pytest.mark.parametrize("name", ["demo", ".", "Qwen/Qwen3-0.6B", "gpt2", "_a/b_-.c", "a/b.gitx"])
def test_what_may_be_a_model_passes(name: str) -> None:
    check_name(name)
