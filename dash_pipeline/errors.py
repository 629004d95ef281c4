"""The errors a person sees: one line that says what is wrong, where, and what to do.

Belongs here: the base classes that the command line and the assets turn into an exit code or a failed run.
Does not belong here: errors that only code sees; those live beside the code that raises them.
"""


class DashError(Exception):
    """Bad input or a wrong setting: trying again will not help. Exit code 2."""

    exit_code = 2


class Unavailable(DashError):
    """A server did not answer within its retries: nothing was lost, trying again may help. Exit code 3."""

    exit_code = 3
