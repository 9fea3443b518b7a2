"""Where a file cannot be written, or must not be: over one that is read, or another that is written."""

import os
from collections.abc import Mapping

from penstock.errors import UserError

Named = Mapping[str, str | None]


def refuse_overwriting(written: Named, read: Named) -> None:
    """Raise UserError where a file of ``written`` is one of ``read`` or another one of ``written``.

    Both map what the person calls it, such as ``-i``, to a path, or to None where nothing was said. Links are followed;
    what ``read`` names need not be a file at all.
    """
    taken = {name: path for name, path in read.items() if path}
    for name, path in written.items():
        if not path:
            continue
        for other, kept in taken.items():
            if os.path.realpath(path) == os.path.realpath(kept):
                raise UserError(f"{name} {path} would be written over {other} {kept}: give it another name")
        taken[name] = path


def refuse_nowhere(flag: str, path: str) -> None:
    """Raise UserError where a file that is written at the end of a long run could not be."""
    if os.path.isdir(path) or not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise UserError(f"{flag} {path} is not a file in a directory that exists; create the directory first")
