"""What a person sees of feeding: bars while it runs, a table at the end.

Belongs here: rich. Does not belong here: anything that a program would want (`replay.Report`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from dash_pipeline.feed import replay
from dash_pipeline.feed.follow import Followed
from dash_pipeline.feed.live import LiveReport

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def bars(console: Console) -> Iterator[replay.Progress]:
    """A bar for each stage, on `console`."""
    columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def tell(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield tell


@contextmanager
def line(console: Console) -> Iterator[Callable[[str], None]]:
    """One line that changes in place; where there is no terminal, a line now and then."""
    if console.is_terminal:
        with console.status("") as status:
            yield status.update
        return
    due = 0.0

    def say(text: str) -> None:
        nonlocal due
        if (now := time.monotonic()) >= due:
            console.print(text, markup=False, highlight=False)
            due = now + SECONDS_BETWEEN_LINES

    yield say


def followed_line(followed: Followed) -> str:
    """How far following a node has come."""
    reorgs = f", {len(followed.reorgs)} reorgs" if followed.reorgs else ""
    return f"block {followed.last_block:,}: {followed.sent.total():,} messages{reorgs}"


def print_report(report: replay.Report, console: Console) -> None:
    """The counts of each topic, and the total."""
    table = Table("topic", "messages", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for topic, count in report.topics.items():
        table.add_row(topic, f"{count:,}")
    console.print(table)
    console.print(f"{report.messages:,} messages in {report.seconds:g} s ({report.per_second:,}/s)", highlight=False)
    if report.committed_after_s is not None:
        console.print(f"all committed {report.committed_after_s:g} s later", highlight=False)
    if isinstance(report, LiveReport):
        for block, depth in report.reorgs:
            console.print(f"reorg at block {block:,}, {depth:,} deep", highlight=False)
    for notice in report.skipped:
        console.print(notice, style="yellow", markup=False, highlight=False, soft_wrap=True)
