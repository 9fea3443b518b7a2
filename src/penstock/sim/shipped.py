"""Scenarios that come with Penstock, by name."""

import os
from pathlib import Path

from penstock.errors import UserError
from penstock.sim.scenario_file import Document, read_document

SHIPPED: tuple[str, ...] = (
    "seed-003",
    "seed-003-legacy",
    "seed-004",
    "seed-004-mha",
    "reasoning-70b",
    "llama70b-b8",
)


def document_of(given: str) -> Document:
    """The document of a shipped scenario's name, or else of the file with this path.

    Raises UserError where it is neither, or where the file cannot be read.
    """
    if given in SHIPPED:
        return read_document(Path(__file__).with_name("scenarios") / f"{given}.toml")
    if not os.path.exists(given):
        raise UserError(
            f"scenario {given!r} is neither a file nor one of {', '.join(SHIPPED)}; "
            "docs/simulate.md says how to write one"
        )
    path = Path(given)
    return _from_there(read_document(path), path.parent)


def _from_there(document: Document, directory: Path) -> Document:
    """The document with the files that it names, which lie relative to it, as paths from here."""
    table = document.get("trace")
    if isinstance(table, dict) and isinstance(table.get("file"), str):
        table["file"] = str(directory / table["file"])
    for side in ("placement", "migration"):
        if isinstance(document.get(side), str) and ".py:" in document[side]:
            document[side] = str(directory / document[side])
    return document
