"""Names that are no model's, told before anything is looked for."""

import pytest

from penstock.errors import UserError
from penstock.model.names import check_name


@pytest.mark.parametrize("name", ["", "a" * 300, "~nobody-of-that-name/x", "a\0b", "no such model"])
def test_what_cannot_be_a_model_is_refused(name: str) -> None:
    with pytest.raises(UserError) as refusal:
        check_name(name)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize("name", ["demo", ".", "Qwen/Qwen3-0.6B"])
def test_what_may_be_a_model_passes(name: str) -> None:
    check_name(name)
