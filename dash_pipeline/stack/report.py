"""A stack's status for people and for programs.

Belongs here: tables and JSON. Does not belong here: gathering what they show (`status.py`).
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from dash_pipeline.stack.servers.dagster import CodeLocation
from dash_pipeline.stack.status import Lane, ServerStatus, Status, TopicLag

_MIB = 1 << 20


def as_json(status: Status) -> str:
    """The whole report."""
    return json.dumps(asdict(status) | {"memory_bytes": status.memory_bytes})


def show(status: Status, console: Console) -> None:
    """One table for each part that has something to show, and a line for each that could not be asked."""
    console.print(_servers(status.servers))
    console.print(f"memory of all servers: {status.memory_bytes / _MIB:,.0f} MiB", highlight=False)
    if status.locations:
        console.print(_locations(status.locations))
    if status.topics:
        console.print(_topics(status.topics))
    if status.lanes:
        console.print(_lanes(status.lanes))
    for problem in status.problems:
        console.print(problem, markup=False, style="yellow", soft_wrap=True)


def _servers(servers: list[ServerStatus]) -> Table:
    table = _table("server", "state", ">pid", ">MiB", "address")
    for one in servers:
        address = f"{one.address}\n{one.problem}".strip()
        pid, memory = str(one.pid or ""), f"{one.memory_bytes / _MIB:,.0f}" if one.pid else ""
        table.add_row(one.name, one.state, pid, memory, address)
    return table


def _locations(locations: list[CodeLocation]) -> Table:
    table = _table("code location", "loaded", "problem")
    for one in locations:
        table.add_row(one.name, "yes" if one.loaded else "no", one.problem)
    return table


def _topics(topics: list[TopicLag]) -> Table:
    """Topics nothing was ever published to would fill the screen; JSON has them."""
    table = _table("topic", ">lag", "next/end of each partition")
    for one in topics:
        if any(part.end for part in one.partitions):
            offsets = "  ".join(f"{part.next:,}/{part.end:,}" for part in one.partitions)
            table.add_row(one.topic, f"{one.lag:,}", offsets)
    table.caption = None if table.row_count else "nothing was published yet"
    return table


def _lanes(lanes: list[Lane]) -> Table:
    table = _table("lane", "job", "status", ">for", "run")
    for one in lanes:
        running = f"{time.time() - one.started:,.0f} s" if one.started else ""
        table.add_row(one.lane, one.job, one.status, running, one.run_id)
    return table


def _table(*columns: str) -> Table:
    """A heading with `>` before it is a column of numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table
