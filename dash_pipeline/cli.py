"""`dash-pipeline`: the one command of the platform.

Belongs here: arguments, help texts, what is printed. Does not belong here: the work; each command calls one function.
"""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from dash_pipeline.errors import DashError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Chain events to tables, search and alerts.")
err = Console(stderr=True)


def main() -> None:
    """Run the command line; a DashError becomes its one line and its exit code."""
    try:
        app()
    except DashError as error:
        err.print(str(error), markup=False, style="red", soft_wrap=True)
        sys.exit(error.exit_code)
