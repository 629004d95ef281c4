"""Child processes that do not outlive us.

Belongs here: starting and ending one. Does not belong here: servers that are meant to stay (`stack/`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# How long a child may take to end by itself.
GRACE_S = 5.0

# We may be killed before the child has asked to be told: it looks once whether we are still its parent.
_ONLY_AS_OUR_CHILD = '[ "$PPID" = "$0" ] && exec "$@"'


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a child (`options` are Popen's) that the kernel kills when we are killed.

    It is in a session of its own: Ctrl-C is for us, and we end the child when we have done with it.
    """
    return subprocess.Popen(tied(command), start_new_session=True, **options)


def tied(command: Sequence[str]) -> list[str]:
    """The command as whoever starts it for us starts it, so that the kernel kills it when we are killed; as it is where
    there is no `setpriv`."""
    if not shutil.which("setpriv"):
        return list(command)
    return ["setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", _ONLY_AS_OUR_CHILD, str(os.getpid()), *command]


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a child to end, and kill it if it does not; returns when it is gone."""
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child for as long as the block lasts."""
    process = start(command, **options)
    try:
        yield process
    finally:
        end(process)
