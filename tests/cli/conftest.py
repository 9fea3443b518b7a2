import io
import sys
from collections.abc import Callable

import pytest
from tests.cli.fake_llm import Engine, install


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """A stand-in for the engine in this process."""
    engine = Engine()
    install(engine, monkeypatch)
    return engine


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Put bytes on standard input."""

    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return put
