"""What a person sees while servers come up.

Belongs here: the one way in which the stack says what it is doing, and the two ways to show it.
Does not belong here: reports about a running stack (`status.py`).
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Progress(Protocol):
    """Takes one line at a time about one server; called from several threads."""

    def say(self, server: str, text: str) -> None:
        """`server` is now doing `text`."""

    def done(self, server: str, text: str) -> None:
        """`server` has nothing more to do."""


class Silent:
    """For tests and scripts: nothing is shown."""

    def say(self, server: str, text: str) -> None:
        """Show nothing."""

    def done(self, server: str, text: str) -> None:
        """Show nothing."""


class Lines:
    """For logs and pipes: a line for each change, with the seconds since the start."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to tidy up."""

    def say(self, server: str, text: str) -> None:
        """One line."""
        with self._lock:
            line = f"{time.monotonic() - self._began:6.1f} s  {server:<16} {text}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    done = say


class Live:
    """For a terminal: a line for each server that changes in place, with a spinner until it is done."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.fields[server]:<16}"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, server: str, text: str) -> None:
        """Change the server's line, or begin it."""
        with self._lock:
            if server not in self._tasks:
                self._tasks[server] = self._bars.add_task("", total=1, server=server)
            self._bars.update(self._tasks[server], description=text)

    def done(self, server: str, text: str) -> None:
        """Change the server's line for the last time; its clock stops."""
        self.say(server, text)
        self._bars.update(self._tasks[server], completed=1)


def shown_on(console: Console) -> Lines | Live:
    """The way to show progress that fits where the output goes."""
    return Live(console) if console.is_terminal else Lines(console)
