"""The real `ethereum-etl stream`: its environment, and one run of it as a child process.

Belongs here: installing it, starting and ending it, cutting what it prints into whole batches.
Does not belong here: what is done with a batch, and when to start again (`follow.py`).

It has an environment of its own because it pins libraries that are years older than the platform's.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from dash_pipeline import children
from dash_pipeline.errors import DashError, Unavailable
from dash_pipeline.feed.files import Event, parse
from dash_pipeline.locks import locked
from dash_pipeline.settings import stack_dir

# Its web3 needs pkg_resources, which newer setuptools lack, and that of Debian 12 takes eth-abi for missing.
PACKAGES = ("ethereum-etl==2.4.2", "setuptools>=75,<81")
# eth-abi pins a parsimonious that does not run on Python 3.11; the next one does, so pip must not look.
PACKAGES_WITHOUT_DEPENDENCIES = ("parsimonious==0.9.0", "regex")

BLOCKS_PER_BATCH = 20
PERIOD_S = 1
LOG_LINES = 60
READ_BYTES = 1 << 20


def opt_dir() -> Path:
    """Where programs are installed: `$DASH_OPT_DIR`, which clones may share, or `opt` in the stack's folder."""
    return Path(os.environ.get("DASH_OPT_DIR") or stack_dir() / "opt").absolute()


def ensure_exporter(say: Callable[[str], None] = lambda _: None) -> Path:
    """The `ethereumetl` program, installed into `opt_dir()` if it is not there yet (about a minute, once).

    Raises Unavailable with pip's last line when it cannot be installed.
    """
    home = opt_dir() / "ethereum-etl"
    program = home / "bin" / "ethereumetl"
    complete = home / ".complete"
    wanted = "\n".join(PACKAGES + PACKAGES_WITHOUT_DEPENDENCIES)
    home.mkdir(parents=True, exist_ok=True)
    with locked(home.with_suffix(".lock")):  # two commands that need it at once install it once
        if complete.exists() and complete.read_text() == wanted:
            return program
        say("installing ethereum-etl into an environment of its own (about a minute, once)")
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([sys.executable, "-m", "venv", "--clear", str(home)])
        _run([*pip, *PACKAGES])
        _run([*pip, "--no-deps", *PACKAGES_WITHOUT_DEPENDENCIES])
        complete.write_text(wanted)
    return program


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise Unavailable(f"installing ethereum-etl: `{' '.join(command[:4])} ...` failed: {said[-1]}")


class Exporter:
    """One run of the exporter, from a block on: a context manager that never leaves the child behind."""

    def __init__(self, program: Path, node: str, start: int, entities: Sequence[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dash-exporter-")
        self._marker = Path(self._folder.name) / "last_synced_block"
        self._synced = start - 1
        self._text = b""
        self._pending: list[tuple[int, Event]] = []
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._process = _start(program, node, start, entities, self._marker)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        threading.Thread(target=_collect, args=(self._process.stderr, self._log), daemon=True).start()

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *_: object) -> None:
        children.end(self._process)
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def next_batch(self, timeout_s: float) -> list[Event]:
        """The events of the next blocks that the exporter has written whole; empty after `timeout_s` without.

        Raises Unavailable when the exporter has ended, DashError when it printed something that is no event.
        """
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            # The marker is written after the events: what it covers when read before the pipe is in the pipe.
            self._synced = max(self._synced, _read_marker(self._marker))
            ended = self._process.poll() is not None
            self._take(_read_available(self._process.stdout))
            if batch := self._whole():
                self._log.clear()
                return batch
            if ended:
                raise Unavailable(f"ethereum-etl ended by itself: {self.last_words()}")
            select.select([self._process.stdout], [], [], min(left, 0.05))
        return []

    def last_words(self) -> str:
        """The last line of the exporter's log that is more than a note; empty when all is well."""
        lines = [line for line in self._log if line and "[INFO]" not in line]
        return lines[-1] if lines else ""

    def _take(self, data: bytes) -> None:
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            try:
                message = parse(line)
            except ValueError as error:
                raise DashError(f"ethereum-etl printed what is no event ({error}): {line[:200]!r}") from None
            before = self._pending[-1][0] if self._pending else self._synced
            self._pending.append((before if message.block is None else message.block, Event(message, line)))

    def _whole(self) -> list[Event]:
        whole = [event for block, event in self._pending if block <= self._synced]
        self._pending = [(block, event) for block, event in self._pending if block > self._synced]
        return whole


def _start(program: Path, node: str, start: int, entities: Sequence[str], marker: Path) -> subprocess.Popen[bytes]:
    options = {
        "--provider-uri": node,
        "--start-block": str(start),
        "--entity-types": ",".join(entities),
        "--last-synced-block-file": str(marker),
        "--period-seconds": str(PERIOD_S),
        "--block-batch-size": str(BLOCKS_PER_BATCH),
        "--batch-size": str(BLOCKS_PER_BATCH),
        "--max-workers": "2",
    }
    arguments = [part for option in options.items() for part in option]
    return children.start(
        [str(program), "stream", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"},
    )


def _read_marker(file: Path) -> int:
    """The last block written whole; -1 while the file is being replaced."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return -1
    return int(text) if text.endswith("\n") else -1


def _read_available(pipe: IO[bytes]) -> bytes:
    parts = []
    while data := _read_some(pipe.fileno()):
        parts.append(data)
    return b"".join(parts)


def _read_some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, READ_BYTES)
    except BlockingIOError:
        return b""


def _collect(pipe: IO[bytes], log: deque[str]) -> None:
    for line in pipe:
        log.append(line.decode(errors="replace").rstrip())
