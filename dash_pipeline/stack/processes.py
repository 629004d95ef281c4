"""The processes of one stack, as the kernel sees them.

Belongs here: finding, measuring and ending them. Does not belong here: starting them (`supervisor.py`).
"""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from dash_pipeline.stack.layout import Layout

#: In the environment of everything that a stack starts.
MARKER = "DASH_STACK_ID"
_PROC = Path("/proc")


def of_stack(layout: Layout) -> set[int]:
    """Every process of this stack, whoever started it, but not the caller and what it was called by."""
    mark = f"{MARKER}={layout.id}".encode()
    postgres = str(layout.data / "timescale")
    found = set()
    for pid in _pids():
        with suppress(OSError):
            if mark in (_PROC / str(pid) / "environ").read_bytes().split(b"\0") or _is_postgres(pid, postgres):
                found.add(pid)
    return found - _self_and_ancestors()


def _is_postgres(pid: int, data: str) -> bool:
    """PostgreSQL's children write over their environment; their working folder tells whose they are."""
    process = _PROC / str(pid)
    return os.readlink(process / "cwd") == data and (process / "comm").read_text() == "postgres\n"


def tree(pid: int) -> set[int]:
    """A process and all that descend from it."""
    children = defaultdict(list)
    for child in _pids():
        children[_parent(child)].append(child)
    found, todo = set(), [pid]
    while todo:
        one = todo.pop()
        found.add(one)
        todo += children[one]
    return found


def memory_bytes(pids: Iterable[int]) -> int:
    """What these processes hold, memory shared by several counted once between them (PSS)."""
    return sum(_pss(pid) for pid in pids)


def end(pids: set[int], patience_s: float) -> None:
    """SIGTERM, and SIGKILL for those that are there after `patience_s`."""
    _signal(pids, signal.SIGTERM)
    if not _gone(pids, patience_s):
        _signal(pids, signal.SIGKILL)
        _gone(pids, 10)


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended but was not collected does not."""
    try:
        state = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


def _gone(pids: set[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _pids() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]


def _parent(pid: int) -> int:
    try:
        return int((_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def _self_and_ancestors() -> set[int]:
    found, pid = set(), os.getpid()
    while pid > 0:
        found.add(pid)
        pid = _parent(pid)
    return found


def _pss(pid: int) -> int:
    with suppress(OSError):
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
