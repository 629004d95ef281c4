"""Waiting for what happens beside a test. Belongs here: that alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(done: Callable[[], T], what: str, seconds: float = 30) -> T:
    """What `done` says once it is true. Fails after so many seconds, with what was waited for."""
    deadline = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return found
