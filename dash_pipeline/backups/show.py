"""Backups, drills and restores, for people.

Belongs here: tables and sentences. Does not belong here: any of the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich.table import Table

from dash_pipeline.backups.content import rows
from dash_pipeline.backups.database import Backup
from dash_pipeline.backups.drill import Drill
from dash_pipeline.backups.restore import Restored
from dash_pipeline.backups.search import Drilled


def backups_table(found: Sequence[Backup]) -> Table:
    """Every backup, newest first."""
    table = Table()
    for name in ("backup", "kind", "on", "restorable from (UTC)", "bytes", "rows", "seconds", "key"):
        table.add_column(name, no_wrap=name == "backup")
    for one in reversed(found):
        table.add_row(
            one.name, one.kind, one.parent, f"{one.ended:%Y-%m-%d %H:%M:%S}", f"{one.bytes:,}",
            f"{rows(one.points):,}", f"{one.seconds:.1f}", one.key,
        )  # fmt: skip
    return table


def as_json(value: Backup | Restored | Sequence[Backup] | Mapping[str, Drill | Drilled]) -> Any:
    """What a program can read."""
    return msgspec.to_builtins(value)


def drill_text(found: Drill | Drilled) -> str:
    """What a drill found."""
    if isinstance(found, Drill):
        head, same = f"database, backup {found.backup}: {found.tables} tables, {found.rows:,} rows compared", "table"
        seconds, lost = found.rto_s, f"at most the last {found.rpo_s:.0f} s would have been lost (RPO)"
    else:
        head, same = f"indexes, snapshot {found.snapshot.name}: {found.documents:,} documents compared", "index"
        seconds, lost = found.restore_s, f"it is {found.age_s:.0f} s old (RPO without the tables)"
    lines = [
        head,
        f"restored in {seconds:.1f} s (RTO); {lost}",
        *(f"differs: {line}" for line in found.differences),
        f"{len(found.differences)} differences" if found.differences else f"every {same} is what it was",
    ]
    return "\n".join(lines)


def restored_text(restored: Restored) -> str:
    """Where the data is, and how to reach and end the server."""
    head = (
        f"restored from backup {restored.backup} in {restored.seconds:.1f} s; newest commit:"
        f" {restored.newest_commit or 'none since then'}\ndata: {restored.data}"
    )
    if not restored.pid:
        return f"{head}\nthe server is stopped: the folder can be moved"
    names = ", ".join(restored.databases)
    return (
        f"{head}\nserver: 127.0.0.1:{restored.port} (databases: {names}), with the passwords of the real one\n"
        f"end it: kill -INT {restored.pid}"
    )
