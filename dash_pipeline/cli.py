"""`dash-pipeline`: the one command of the platform.

Belongs here: arguments, help texts, what is printed.
Does not belong here: the work; each command calls one function.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from dash_pipeline.errors import DashError

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Chain events to tables, search and alerts."
)
out = Console()
err = Console(stderr=True)


@app.command()
def up(
    only: Annotated[str, typer.Option(help="These servers or groups and what they need, as in kafka,timescale.")] = "",
) -> None:
    """Install what is missing, and bring up the local stack: servers, schema, topics, Dagster."""
    from dash_pipeline.stack import Stack
    from dash_pipeline.stack.progress import shown_on

    with shown_on(err) as progress:
        Stack.at().up(only=[name for name in only.split(",") if name], progress=progress)


@app.command()
def down() -> None:
    """Stop every process of the local stack, and no other."""
    from dash_pipeline.stack import Stack
    from dash_pipeline.stack.progress import shown_on

    with shown_on(err) as progress:
        Stack.at().down(progress)


@app.command()
def status(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    secrets: Annotated[bool, typer.Option("--secrets", help="Show passwords in addresses.")] = False,
) -> None:
    """Show servers, code locations, lag and live lanes of the local stack."""
    from dash_pipeline.stack import Stack
    from dash_pipeline.stack.report import as_json, show
    from dash_pipeline.stack.status import status as gather

    report = gather(Stack.at(), secrets=secrets)
    if json:
        out.print_json(as_json(report))
    else:
        show(report, out)


@app.command()
def reset(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    all_: Annotated[bool, typer.Option("--all", help="Forget passwords and settings too.")] = False,
) -> None:
    """Stop the local stack and delete its data; installed servers stay."""
    from dash_pipeline.stack import Stack

    stack = Stack.at()
    if not yes:
        typer.confirm(f"Delete all data under {stack.layout.home}?", abort=True)
    stack.reset(everything=all_)


def main() -> None:
    """Run the command line; a DashError becomes its one line and its exit code."""
    try:
        app()
    except DashError as error:
        err.print(str(error), markup=False, style="red", soft_wrap=True)
        sys.exit(error.exit_code)
