"""The one exception that a person can mend, and what is told of others."""

import errno

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of an OSError: no room, or none that this person may have


class UserError(Exception):
    """A mistake of the person at the keyboard: its text is one line that says what, with numbers, and what to do.

    The command line prints it as ``penstock: <text>`` and exits with status 2; in Python it is raised as it is.
    """


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says: its first line that is not blank, with the next where it ends in a colon.

    The error's name where it says nothing.
    """
    lines = [told for line in str(error).splitlines() if (told := " ".join(line.split()))]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
