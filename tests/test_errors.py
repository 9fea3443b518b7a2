import pytest

from penstock.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one"), "one"),
        (ValueError("\n  \n one \ntwo"), "one"),
        (ValueError(), "ValueError"),
        (KeyError("name"), "'name'"),
        (ValueError("two  errors:\n\n  the  first\n the second"), "two errors: the first"),
        (ValueError("nothing follows:"), "nothing follows:"),
        (RuntimeError("\n"), "RuntimeError"),
    ],
)
def test_the_first_line_that_says_something(error: Exception, line: str) -> None:
    assert first_line(error) == line
