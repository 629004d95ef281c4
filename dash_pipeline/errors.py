"""The errors a person sees: one line that says what is wrong, where, and what to do.

Belongs here: the base classes that the command line and the assets turn into an exit code or a failed run, and how
other errors become a line.
Does not belong here: errors that only code sees; those live beside the code that raises them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable


class DashError(Exception):
    """Bad input or a wrong setting: trying again will not help. Exit code 2."""

    exit_code = 2


class Unavailable(DashError):
    """A server did not answer within its retries: nothing was lost, trying again may help. Exit code 3."""

    exit_code = 3


def first_line(error: BaseException) -> str:
    """What an error says, cut to one line; its type's name when it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def run_script(app: Callable[[], object]) -> None:
    """Run a module's own small command line; a DashError becomes its one line and its exit code."""
    try:
        app()
    except DashError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
