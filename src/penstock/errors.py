"""The one exception that a person can mend."""


class UserError(Exception):
    """A mistake of the person at the keyboard: its text is one line that says what, with numbers, and what to do.

    The command line prints it as ``penstock: <text>`` and exits with status 2; in Python it is raised as it is.
    """
